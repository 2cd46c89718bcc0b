"""The main job: race mechanisms on the user's own data, rank them, recommend."""
