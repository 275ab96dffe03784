"""Text: prompts, their tokens, and the text encoder's states in files."""
