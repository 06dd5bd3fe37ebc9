"""What the entry points share: an environment, a ComfyUI server, a way to talk to it. Standard library only."""
