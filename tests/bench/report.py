"""From single measurements to medians, ratios, goals, tables and the plot's curves."""
import re
import statistics

import plot as svg

NAMES = {"bare": "bare epoll", "go": "Go", "go, files": "Go, a file a body",
         "go, sessions": "Go, session cache", "aiohttp": "aiohttp, default limit",
         "aiohttp None": "aiohttp, limit=None"}
TITLES = {
    "curve": "N URLs of an endpoint that takes 2 s, over 20 hosts",
    "throughput": "Responses of 1 KiB from one host over 100 and 200 kept connections",
    "hosts": "The same over many host names, and with new connections (200 at once)",
    "tls": "HTTPS, 100 connections at once", "memory": "Memory", "scale": "CPU as work grows",
    "submit": "Submission of URLs as text, until the 202", "polls": "Status polls, saturated",
}


def mib(value):
    return f"{value / 2**20:.0f} MiB"


def progress(record):
    """One line while it runs."""
    words = [f"  {record['section']} {record['case']}, round {record['round'] + 1}: "
             f"{NAMES.get(record['client'], record['client'])}:"]
    if "error" in record:
        return " ".join([*words, "ERROR", record["error"]])
    if "scheduled" in record:
        words.append(f"p50 {record['scheduled']['p50']:.2f} ms, "
                     f"p99 {record['scheduled']['p99']:.2f} ms, "
                     f"max {record['scheduled']['max']:.1f} ms; from sending: p99 "
                     f"{record['sent']['p99']:.2f} ms;")
    if "scheduled" not in record and "wall" in record:
        words.append(f"{record['wall']:.2f} s")
    if "cpu" in record and "scheduled" not in record:
        words.append(f"CPU {record['cpu']:.2f} s")
    words.append(mib(record["rss"]))
    if "in_flight_bytes" in record:
        words.append(f"{record['in_flight_bytes'] / 1024:.1f} KiB a transfer "
                     f"({record['peak_bytes'] / 1024:.1f} at the peak)")
    for key in ("connects", "resumed"):
        if key in record:
            words.append(f"{key} {record[key]:.4g}")
    if record.get("failed"):
        words.append(f"FAILED {record['failed']}: {record.get('complaint', '').strip()}")
    if record.get("foreign", 0) > 0.1:
        words.append(f"(others took {record['foreign']:.0%} of the machine)")
    return " ".join(words)


# ---- medians ----

class Figures:
    """The single values, by section, case and client."""

    def __init__(self, document):
        self.values = {}
        for r in document["records"]:
            if "error" not in r:
                self.values.setdefault((r["section"], r["case"], r["client"]), []).append(r)

    def get(self, section, case, client, key):
        """The median of a figure over the rounds; None: not measured."""
        return self._median(self.values.get((section, str(case), client), []), key)

    @staticmethod
    def _median(records, key):
        function = key if callable(key) else lambda r: r.get(key)
        values = [v for v in map(function, records) if v is not None]
        return statistics.median(values) if values else None

    def ratio(self, section, case, client, other, key):
        """The median of the ratios of one round each, so that what disturbs a round disturbs both;
        where rounds have nothing in common, the ratio of medians."""
        function = key if callable(key) else lambda r: r.get(key)
        mine, others = ({r["round"]: function(r) for r in self.values.get((section, str(case), c),
                                                                          [])}
                        for c in (client, other))
        pairs = [mine[k] / others[k] for k in mine.keys() & others.keys() if mine[k] and others[k]]
        return statistics.median(pairs) if pairs else None

    def cases(self, section):
        return list(dict.fromkeys(c for s, c, _ in self.values if s == section))

    def clients(self, section, case):
        return [c for s, k, c in self.values if s == section and k == case]


def cpu_each(record):
    return record["cpu"] / record["urls"] if "cpu" in record else None


def wall_each(record):
    return record["wall"] / record["urls"] if "wall" in record else None


def summary(document):
    """Medians, and the ratio of each client to batchfetch (2: takes twice as much)."""
    figures = Figures(document)
    rows = []
    for section in TITLES:
        for case in figures.cases(section):
            for client in figures.clients(section, case):
                records = figures.values[section, case, client]
                row = {"section": section, "case": case, "client": client,
                       "rounds": len(records), "urls": records[0]["urls"],
                       "failed": sum(r.get("failed", 0) for r in records)}
                for key in ("wall", "cpu", "rss", "in_flight_bytes", "peak_bytes", "rss_before",
                            "connects", "resumed", "foreign"):
                    value = figures.get(section, case, client, key)
                    if value is not None:
                        row[key] = value
                if "scheduled" in records[0]:
                    for q in ("p50", "p99", "max"):
                        row[q + "_ms"] = figures.get(section, case, client,
                                                     lambda r, q=q: r["scheduled"][q])
                for key, function in (("wall_ratio", wall_each), ("cpu_ratio", cpu_each)):
                    ratio = figures.ratio(section, case, client, "batchfetch", function)
                    if ratio is not None and client != "batchfetch":
                        row[key] = ratio
                rows.append(row)
    return rows


# ---- goals ----

def goals(document):
    """What issue 3 asks for, each with its figure: {work, goal, figure, ok}; ok None: a figure is
    missing. `figure` and `limit` are ratios unless `unit` says otherwise."""
    f = Figures(document)
    found = []

    def goal(section, work, figure, limit, least=False, unit="×"):
        if section not in {s for s, _, _ in f.values}:
            return
        ok = None
        if figure is not None and limit is not None:
            ok = figure >= limit if least else figure <= limit
        if ok is None and document["quick"]:
            return  # left out for its length
        found.append({"section": section, "work": work, "figure": figure, "limit": limit,
                      "least": least, "unit": unit, "ok": ok})

    def failures(section):
        records = [r for r in document["records"]
                   if r["section"] == section and r["client"] == "batchfetch"]
        goal(section, "failed requests and measurements",
             sum(r.get("failed", 0) + ("error" in r) for r in records), 0, unit="")

    _curve_goals(f, goal)
    failures("curve")
    for conns in f.cases("throughput"):
        rate = f.ratio("throughput", conns, "go", "batchfetch", "wall")
        goal("throughput", f"{conns} connections: URLs a second, to Go's", rate, 1.2, least=True)
        for other, name, limit in (("go", "Go's", 1.0), ("go, files", "Go's with a file a body", 0.7)):
            goal("throughput", f"{conns} connections: CPU, to {name}",
                 f.ratio("throughput", conns, "batchfetch", other, "cpu"), limit)
    failures("throughput")
    _hosts_goals(f, goal)
    failures("hosts")

    case = "new connections"
    best = [x for x in (f.ratio("tls", case, "batchfetch", c, "cpu")
                        for c in ("go", "go, sessions")) if x]
    goal("tls", "new connections: CPU, to the better of Go's", max(best, default=None), 1.0)
    best = [x for x in (f.ratio("tls", case, c, "batchfetch", "wall")
                        for c in ("go", "go, sessions")) if x]
    goal("tls", "new connections: URLs a second, to the better of Go's", min(best, default=None),
         1.0, least=True)
    goal("tls", "100 kept: URLs a second, to Go's",
         f.ratio("tls", "100 kept", "go", "batchfetch", "wall"), 1.0, least=True)
    resumed = f.get("tls", case, "batchfetch", "resumed")
    goal("tls", "sessions resumed", resumed, 0.9, least=True, unit="share")
    failures("tls")

    each = f.get("memory", "in flight", "batchfetch", "peak_bytes")
    goal("memory", "resident for each transfer in flight", each and each / 1024, 16, unit="KiB")
    queued = [c for c in f.cases("memory") if "queued" in c]
    if len(queued) == 2:
        few, many = (f.get("memory", c, "batchfetch", "rss") for c in queued)
        goal("memory", f"resident with {queued[1]} URLs, to that with {queued[0].split()[0]}",
             many / few, 1.2)
    failures("memory")

    base = f.get("scale", "10,000 URLs", "batchfetch", cpu_each)
    for case in ("1,000,000 URLs", "100 batches"):
        value = f.get("scale", case, "batchfetch", cpu_each)
        goal("scale", f"{case}: CPU a URL, to that at 10,000 URLs",
             value / base if value and base else None, 1.25)
    failures("scale")
    for case in f.cases("submit"):
        goal("submit", f"{case}: accepted and durable",
             f.get("submit", case, "batchfetch", lambda r: r["urls"] / r["wall"]), 400000,
             least=True, unit="a second")
    for case in f.cases("polls"):
        goal("polls", f"{case}: p99", f.get("polls", case, "batchfetch",
                                            lambda r: r["scheduled"]["p99"]), 20, unit="ms")
    failures("polls")
    return found


def _curve_goals(f, goal):
    limits = {"100": 1.10, "1000": 1.10, "5000": 1.15, "10000": 1.20, "19500": 1.30}
    for n in f.cases("curve"):
        goal("curve", f"{int(n):,}: wall time, to bare epoll",
             f.ratio("curve", n, "batchfetch", "bare", "wall"), limits[n])
    for n in ("10000", "19500"):
        if n in f.cases("curve"):
            goal("curve", f"{int(n):,}: wall time, to Go's",
                 f.ratio("curve", n, "batchfetch", "go", "wall"), 1.0)
            goal("curve", f"{int(n):,}: CPU, to Go's",
                 f.ratio("curve", n, "batchfetch", "go", "cpu"), 0.75)
    most, base = (f.get("curve", n, "batchfetch", cpu_each) for n in ("19500", "10000"))
    if most and base:
        goal("curve", "19,500: CPU a URL, to that at 10,000", most / base, 1.25)


def _hosts_goals(f, goal):
    """1.5 × the CPU of one host, and the connects at what one costs us at one host."""
    each = {case: f.get("hosts", case, "batchfetch", cpu_each) for case in f.cases("hosts")}
    one, new = each.get("1 host"), each.get("1 host, new connections")
    for case in ("10,000 names", "1,000 names, new connections"):
        connects = f.get("hosts", case, "batchfetch", lambda r: r["connects"] / r["urls"])
        limit = None
        if one and new and connects is not None:
            limit = 1.5 * one + min(1, connects) * max(0, new - one)
        value = each.get(case)
        goal("hosts", f"{case}: CPU, to 1.5 × one host's and the connects",
             value / limit if value and limit else None, 1.0)


# ---- text ----

def goal_cells(goal):
    def number(x):
        if x is None:
            return "not measured"
        if goal["unit"] in ("", "a second"):
            return f"{x:,.0f} {goal['unit']}".strip()
        return f"{x:.2f} {goal['unit']}"
    limit = ("at least " if goal["least"] else "at most ") + number(goal["limit"])
    if goal["unit"] == "":
        limit = "none"
    verdict = {True: "ok", False: "MISSED", None: "-"}[goal["ok"]]
    return [goal["work"], limit, number(goal["figure"]), verdict]


def row_cells(row):
    """Cells of one row, by column; columns that nobody fills are left out."""
    cells = {"case": row["case"] if not row["case"].isdigit() else f"{int(row['case']):,}",
             "client": NAMES.get(row["client"], row["client"])}
    if "wall" in row and "p99_ms" not in row:
        cells["wall s"] = f"{row['wall']:.2f}"
        if "wall_ratio" in row:
            cells["× wall"] = f"{row['wall_ratio']:.2f}"
        if row["section"] != "curve":
            cells["URLs/s"] = f"{row['urls'] / row['wall']:,.0f}"
    if "cpu" in row and "p99_ms" not in row:
        cells["CPU s"] = f"{row['cpu']:.2f}"
        cells["CPU s/10,000"] = f"{row['cpu'] / row['urls'] * 10000:.3f}"
        if "cpu_ratio" in row:
            cells["× CPU"] = f"{row['cpu_ratio']:.2f}"
    if "p99_ms" in row:
        cells.update({q: f"{row[q + '_ms']:.2f} ms" for q in ("p50", "p99", "max")})
    if "in_flight_bytes" in row:
        cells["KiB/transfer"] = f"{row['in_flight_bytes'] / 1024:.1f}"
        cells["KiB/transfer at the peak"] = f"{row['peak_bytes'] / 1024:.1f}"
    cells["peak RSS" if row["section"] != "memory" else "RSS"] = mib(row["rss"])
    if "connects" in row and row["section"] in ("hosts", "throughput"):
        cells["connects"] = f"{row['connects']:,.0f}"
    if "resumed" in row:
        cells["resumed"] = f"{row['resumed']:.0%}"
    cells["failed"] = f"{row['failed']:,}"
    return cells


def tables(document):
    """-> (title, columns, rows of cells) of each section, the goals first"""
    if document["goals"]:
        yield ("Goals", ["work", "goal", "figure", ""],
               [goal_cells(g) for g in document["goals"]])
    order = ["case", "client", "wall s", "× wall", "URLs/s", "CPU s", "CPU s/10,000", "× CPU",
             "p50", "p99", "max", "KiB/transfer", "KiB/transfer at the peak", "peak RSS", "RSS",
             "connects", "resumed", "failed"]
    for section, title in TITLES.items():
        rows = [row_cells(r) for r in document["summary"] if r["section"] == section]
        if rows:
            used = [c for c in order if any(c in r for r in rows)]
            yield title, used, [[r.get(c, "") for c in used] for r in rows]


def numeric(cell):
    return re.match(r"[\d.,]+( ?(MiB|ms|%|×|KiB|share|a second))?$", cell) is not None


def text(document):
    parts = []
    for title, columns, rows in tables(document):
        widths = [max(len(r[i]) for r in [columns, *rows]) for i in range(len(columns))]
        lines = [title, ""]
        for row in [columns, *rows]:
            lines.append("  ".join(
                cell.rjust(w) if numeric(cell) and i > 1 else cell.ljust(w)
                for i, (cell, w) in enumerate(zip(row, widths))).rstrip())
        parts.append("\n".join(lines) + "\n")
    missed = sum(g["ok"] is False for g in document["goals"])
    parts.append(f"{len(document['goals'])} goals, {missed} missed; {document['rounds']} rounds, "
                 f"{document['seconds']} s"
                 + ("; --quick: smaller sizes, the goals are for the full ones"
                    if document["quick"] else "") + "\n")
    return "\n".join(parts + [line + "\n" for line in busy(document)])


def busy(document):
    """A line that says so if others had the machine too."""
    foreign = [r["foreign"] for r in document["records"] if r.get("foreign") is not None]
    if foreign and statistics.median(foreign) > 0.05:
        yield (f"Others took {statistics.median(foreign):.0%} of the machine meanwhile (the median; "
               f"{max(foreign):.0%} at most): the figures are worse for it.")


def markdown(document):
    machine = document["machine"]
    parts = [f"{machine['date']}, batchfetch at {machine['commit']}; {machine['cpu']}, "
             f"{machine['cores']} cores, {machine['memory_gib']} GiB, Linux {machine['kernel']}, "
             f"{machine['descriptors']:,} descriptors a process; "
             + ", ".join(machine["versions"].values())
             + f". {document['rounds']} rounds in {document['seconds'] // 60} minutes."]
    parts += busy(document)
    if document["quick"]:
        parts.append("With --quick: smaller sizes, the goals are for the full ones.")
    for title, columns, rows in tables(document):
        lines = ["### " + title, "", "| " + " | ".join(columns) + " |"]
        lines.append("| " + " | ".join(
            "---:" if i > 0 and rows and any(numeric(r[i]) for r in rows) else "---"
            for i in range(len(columns))) + " |")
        for row in rows:
            bold = "batchfetch" in row
            lines.append("| " + " | ".join(
                f"**{c}**" if bold and c == "batchfetch" else c for c in row) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def plot(document):
    """Wall time over N, an SVG; None without the curve."""
    curves = {}
    for row in document["summary"]:
        if row["section"] == "curve":
            curves.setdefault(row["client"], []).append((int(row["case"]), row["wall"]))
    if not curves:
        return None
    return svg.curve({NAMES.get(c, c): sorted(points) for c, points in curves.items()})


BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->\n"


def write_docs(document, picture, docs):
    path = docs / "performance.md"
    before = path.read_text()
    if before.count(BEGIN) != 1 or before.count(END) != 1:
        raise SystemExit(f"{path}: the marks {BEGIN.strip()} and {END.strip()} are not there once")
    head, rest = before.split(BEGIN)
    if picture is not None:
        (docs / "performance.svg").write_text(picture)
    shown = "![Wall time over the number of URLs](performance.svg)\n\n" \
        if (docs / "performance.svg").exists() else ""
    path.write_text(head + BEGIN + "\n" + shown + markdown(document) + "\n" + END +
                    rest.split(END)[1])
    print(f"Written: {path}" + (" and performance.svg" if picture else ""))
