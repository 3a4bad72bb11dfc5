"""Floor 0: arrays, relations, collectives and the errors users see."""
