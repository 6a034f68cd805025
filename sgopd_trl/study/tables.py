"""A study's table in Markdown, LaTeX and at the terminal: percent, differences in percentage points."""

from collections.abc import Callable, Sequence

from rich.markup import escape
from rich.table import Table

from .results import RowResult, metrics_of
from .statistics import Difference, Mean


_NONE = "–"


def header(results: Sequence[RowResult], baseline: str) -> list[str]:
    """The columns: the row, its runs, each metric with its difference to the baseline, the paper's figures."""
    columns = ["row", "n"]
    for metric in metrics_of(list(results)):
        columns += [metric, f"{metric} − {baseline} [95%]"]
    return columns + [f"paper, {metric}" for metric in _paper_metrics(results)]


def cells(row: RowResult, results: Sequence[RowResult]) -> list[str]:
    """A row's cells, as `header` has them."""
    texts = [row.name, str(len(row.runs)) if row.runs else _NONE]
    for metric in metrics_of(list(results)):
        texts += [show_mean(row.means.get(metric)), show_difference(row.differences.get(metric), len(row.runs))]
    return texts + [f"{row.paper[metric]:.2f}" if metric in row.paper else _NONE for metric in _paper_metrics(results)]


def show_mean(value: Mean | None) -> str:
    """As '77.9 ± 1.2': mean and standard error."""
    if value is None:
        return _NONE
    return f"{100 * value.value:.1f}" + ("" if value.error is None else f" ± {100 * value.error:.1f}")


def show_difference(value: Difference | None, n: int) -> str:
    """As '−3.2 [−5.1, −1.3]', with '(4 pairs)' where these are not all of the row's n runs."""
    if value is None:
        return _NONE
    text = _signed(value.value) + ("" if value.low is None else f" [{_signed(value.low)}, {_signed(value.high)}]")
    return text if value.n == n else f"{text} ({value.n} pair{'s' * (value.n > 1)})"


def markdown(results: Sequence[RowResult], baseline: str) -> str:
    """A Markdown table; differences whose interval leaves 0 out are bold."""

    def show(row: RowResult) -> list[str]:
        return [cell.replace("|", "\\|") for cell in _emphasised(row, results, "**{}**".format)]

    columns = header(results, baseline)
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1)]
    for group, rows in _groups(results):
        if group is not None:
            lines.append([f"*{group}*"] + [""] * (len(columns) - 1))
        lines += [show(row) for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(results: Sequence[RowResult], baseline: str) -> str:
    r"""A LaTeX table for booktabs; differences whose interval leaves 0 out are bold."""

    def line(texts: Sequence[str]) -> str:
        return " & ".join(texts) + r" \\"

    columns = header(results, baseline)
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}", r"\toprule", line(map(_tex, columns)), r"\midrule"]
    for number, (group, rows) in enumerate(_groups(results)):
        if group is not None:
            lines += [r"\addlinespace"] * bool(number)
            lines.append(rf"\multicolumn{{{len(columns)}}}{{l}}{{\textit{{{_tex(group)}}}}} \\")
        lines += [line(_emphasised(row, results, r"\textbf{{{}}}".format, _tex)) for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def terminal(results: Sequence[RowResult], baseline: str) -> Table:
    """The same for rich."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, name in enumerate(header(results, baseline)):
        table.add_column(escape(name), justify="right" if number else "left", no_wrap=not number)
    for group, rows in _groups(results):
        if group is not None:
            table.add_row(f"[italic]{escape(group)}[/italic]")
        for row in rows:
            table.add_row(*_emphasised(row, results, "[bold]{}[/bold]".format, escape))
    return table


def _emphasised(
    row: RowResult,
    results: Sequence[RowResult],
    bold: Callable[[str], str],
    plain: Callable[[str], str] = str,
) -> list[str]:
    texts = [plain(text) for text in cells(row, results)]
    for number, metric in enumerate(metrics_of(list(results))):
        if metric in row.differences and row.differences[metric].decided:
            texts[3 + 2 * number] = bold(texts[3 + 2 * number])
    return texts


def _groups(results: Sequence[RowResult]) -> list[tuple[str | None, list[RowResult]]]:
    """Neighbouring rows of one group together."""
    groups: list[tuple[str | None, list[RowResult]]] = []
    for row in results:
        if not groups or groups[-1][0] != row.group:
            groups.append((row.group, []))
        groups[-1][1].append(row)
    return groups


def _paper_metrics(results: Sequence[RowResult]) -> list[str]:
    return list(dict.fromkeys(metric for row in results for metric in row.paper))


def _signed(value: float) -> str:
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def _tex(text: str) -> str:
    special = {character: f"\\{character}" for character in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    special |= {"±": r"$\pm$", "−": "$-$", "–": "--"}
    return "".join(special.get(character, character) for character in text)
