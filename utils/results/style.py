"""The look that all figures share: colours, lines, legend and axes."""

from matplotlib.axes import Axes

INK, GREY = "#222222", "#8a8a8a"
#: Okabe and Ito's colour-blind-safe series, without the yellow, which is hard to see on white.
SERIES_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = (0, (4, 3))
#: Keyword arguments of every legend.
LEGEND = {"frameon": False, "fontsize": 9, "labelcolor": INK}


def tidy(axes: Axes) -> None:
    """Leave two grey spines, small tick labels and a light horizontal grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(GREY)
    axes.tick_params(which="both", color=GREY, labelcolor=INK, labelsize=9)
    axes.grid(axis="y", color="#e6e6e6", lw=0.8)
    axes.set_axisbelow(True)
