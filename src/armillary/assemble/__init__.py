"""The one room that knows every other: builds a recipe or refuses it with the reason, and calls the loop."""
