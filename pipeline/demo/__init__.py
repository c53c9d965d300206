"""The synthetic demo videos: what happens in a clip (scene) and what its frames look like (render).

Every clip shows one actor among distractors under a moving camera. The class is a pair of a motion and a look, and the
exact interval of the action and the actor's box in every frame are known. Everything is a pure function of its
arguments; files, splits and progress belong to the stage that uses this package.
"""
