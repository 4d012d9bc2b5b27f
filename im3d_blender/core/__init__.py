"""What both a script and the panel deal with, without bpy: requests, placement, finished jobs, facts about models."""
