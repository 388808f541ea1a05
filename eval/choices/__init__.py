"""Choice sets: does a model prefer what is true of a picture to what is nearly true?"""
