"""What a label may be, what is asked and scored of it, and what an answer to it may look like."""
