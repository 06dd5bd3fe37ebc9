"""Writes workflows/*.json: python scripts/build_workflows.py --url http://127.0.0.1:8188 [--check] [NAMES].

The graphs are described in scripts/workflows. A running ComfyUI with this pack says which inputs, outputs and widgets
the nodes have, so a renamed input stops the build. --check writes nothing and says which files differ.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(Path(__file__).parent))

from workflows.subgraphs import workflow  # noqa: E402

from workflows import clips, films, places  # noqa: E402

WORKFLOWS = {
    "demo_toyworld": films.demo_toyworld,
    "resume_and_reroll": films.resume_and_reroll,
    "compare_quantization": clips.compare_quantization,
    "short_30s_720p_12gb": films.short_30s_720p_12gb,
    "short_30s_720p_12gb_unrolled": clips.short_30s_720p_12gb_unrolled,
    "short_30s_i2v_character_12gb": films.short_30s_i2v_character_12gb,
    "short_30s_wan22_ti2v_latent_memory_12gb": films.short_30s_wan22_ti2v_latent_memory_12gb,
    "short_30s_wan21_1.3b_causal_8gb": films.short_30s_wan21_13b_causal_8gb,
    "clip_14b_i2v_12gb": clips.clip_14b_i2v_12gb,
    "short_1080p_16gb": films.short_1080p_16gb,
    "short_30s_24gb_long_memory": films.short_30s_24gb_long_memory,
    "world_walk_720p_12gb": places.world_walk_720p_12gb,
}


def file_text(name: str, object_info: dict) -> str:
    """What the file of that workflow contains."""
    return json.dumps(workflow(name, *WORKFLOWS[name](), object_info), indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="a running ComfyUI with this pack, e.g. http://127.0.0.1:8188")
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 where a file differs")
    parser.add_argument("names", nargs="*", help="workflows to build (default: all)")
    chosen = parser.parse_args()
    with urllib.request.urlopen(f"{chosen.url}/object_info") as answer:
        object_info = json.load(answer)
    different = 0
    for name in chosen.names or WORKFLOWS:
        path, text = ROOT / "workflows" / f"{name}.json", file_text(name, object_info)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            different += 1
            print(f"{path.relative_to(ROOT)} {'differs' if chosen.check else 'written'}")
            if not chosen.check:
                path.write_text(text, encoding="utf-8", newline="\n")
    return int(chosen.check and different > 0)


if __name__ == "__main__":
    sys.exit(main())
