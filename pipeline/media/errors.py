"""The one exception that means: this video cannot be used, the others can."""


class UnusableVideo(Exception):  # noqa: N818 - it names the video's state, and the run goes on
    """A video cannot be used; the message is one sentence that says why, without the video's name."""
