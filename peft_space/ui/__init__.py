"""The page `peft-space ui`: a base model before and after its erasures, side by side, with what is known of each.

It stands above everything but the command line, and may import all of the package; nothing of the package imports it.
`workbench` holds model and erasures and knows no page, `panels` turns what is known into HTML, `picture` and `page`
are what Gradio shows, `serving` is what may be sent to it, `space` writes the folder of a Hugging Face Space.
"""

try:
    from .page import build_page
    from .serving import serve
    from .space import write_space
    from .workbench import DEMO, Erasure, Workbench
except ModuleNotFoundError as error:
    needed = (error.name or "").partition(".")[0]
    if needed not in ("gradio", "matplotlib"):
        raise
    raise ImportError(
        f"`peft-space ui` needs {needed}, which is not installed: `pip install 'peft-space[demo]'`."
    ) from error

__all__ = ["DEMO", "Erasure", "Workbench", "build_page", "serve", "write_space"]
