"""The vocabulary: frozen values that every floor speaks. Standard library only."""
