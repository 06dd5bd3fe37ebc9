"""The bundled workflows: what each consists of (films.py, clips.py), and how a graph becomes a file (graph.py)."""
