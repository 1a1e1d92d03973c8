"""A line chart with logarithmic axes, as SVG that brings its own background for light and dark."""
import html
import math

WIDTH, HEIGHT = 860, 520
LEFT, RIGHT, TOP, BOTTOM = 70, 195, 62, 56

# Colours that stand apart for the colour-blind too (after Okabe and Ito), light and dark theme.
LOOKS = {
    "batchfetch": ("#d1242f", "#ff7b72", 3.5, ""),
    "bare epoll": ("#57606a", "#8b949e", 1.8, "5 4"),
    "Go": ("#0072b2", "#58a6ff", 2, ""),
    "aiohttp, limit=None": ("#b35900", "#e69f00", 2, ""),
    "aiohttp, default limit": ("#b35900", "#e69f00", 2, "2 4"),
    "curl -Z": ("#00795c", "#3fb98f", 2, ""),
}
OTHER = ("#8250df", "#bc8cff", 2, "")


def tick(value):
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def apart(wanted, least, low, high):
    """Moves labels that would overlap: {name: y} -> the same, at least `least` apart."""
    names = sorted(wanted, key=wanted.get)
    ys = [wanted[n] for n in names]
    for _ in range(200):
        moved = False
        for i in range(1, len(ys)):
            if ys[i] - ys[i - 1] < least - 0.01:
                shift = (least - (ys[i] - ys[i - 1])) / 2
                ys[i - 1] = max(low, ys[i - 1] - shift)
                ys[i] = min(high, ys[i - 1] + least)
                moved = True
        if not moved:
            break
    return dict(zip(names, ys))


def curve(curves):
    """curves: name -> [(N, seconds)], sorted by N"""
    xs = [x for points in curves.values() for x, _ in points]
    ys = [y for points in curves.values() for _, y in points]
    low_x, high_x = math.log10(min(xs)), math.log10(max(xs) * 1.05)
    low_y, high_y = math.log10(min(1.5, min(ys) * 0.9)), math.log10(max(ys) * 1.25)

    def at_x(n):
        return LEFT + (math.log10(n) - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)

    def at_y(s):
        return HEIGHT - BOTTOM - (math.log10(s) - low_y) / (high_y - low_y) * (
            HEIGHT - TOP - BOTTOM)

    looks = {name: LOOKS.get(name, OTHER) for name in curves}
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
           f'width="{WIDTH}" height="{HEIGHT}" role="img" font-size="13" '
           'font-family="system-ui, -apple-system, \'Segoe UI\', \'DejaVu Sans\', sans-serif">',
           "<title>Wall time over the number of URLs</title>",
           "<style>",
           ".back { fill: #ffffff; stroke: #d0d7de }",
           ".ink { fill: #1f2328 } .faint { fill: #57606a } .grid { stroke: #d8dee4 }"]
    dark = [".back { fill: #0d1117; stroke: #30363d }",
            ".ink { fill: #e6edf3 } .faint { fill: #9198a1 } .grid { stroke: #21262d }"]
    for i, (name, look) in enumerate(looks.items()):
        dash = f"; stroke-dasharray: {look[3]}" if look[3] else ""
        out.append(f".line{i} {{ fill: none; stroke: {look[0]}; stroke-width: {look[2]}{dash} }} "
                   f".dot{i} {{ fill: {look[0]} }}")
        dark.append(f".line{i} {{ stroke: {look[1]} }} .dot{i} {{ fill: {look[1]} }}")
    out += ["@media (prefers-color-scheme: dark) {", *dark, "}", "</style>",
            f'<rect class="back" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" '
            'rx="6"/>',
            f'<text class="ink" x="{LEFT}" y="28" font-size="16" font-weight="600">'
            'Seconds to fetch N URLs of a server that takes 2 s for each</text>',
            f'<text class="faint" x="{LEFT}" y="47">20 hosts; batchfetch from POST to completed, '
            'with all results durable; medians; both axes logarithmic</text>']

    for value in (2, 3, 5, 10, 20, 30, 50, 100, 200):
        if low_y <= math.log10(value) <= high_y:
            y = at_y(value)
            out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" '
                       f'y2="{y:.1f}"/><text class="faint" x="{LEFT - 9}" y="{y + 4.5:.1f}" '
                       f'text-anchor="end">{tick(value)} s</text>')
    for value in sorted(set(xs)):
        x = at_x(value)
        out.append(f'<line class="grid" y1="{TOP}" y2="{HEIGHT - BOTTOM}" x1="{x:.1f}" '
                   f'x2="{x:.1f}"/><text class="faint" y="{HEIGHT - BOTTOM + 20}" x="{x:.1f}" '
                   f'text-anchor="middle">{tick(value)}</text>')
    out.append(f'<text class="faint" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 12}" '
               'text-anchor="middle">URLs, all at once</text>')

    # batchfetch last, so that it lies on top.
    order = sorted(curves, key=lambda n: n == "batchfetch")
    index = {name: i for i, name in enumerate(curves)}
    for name in order:
        i = index[name]
        path = " ".join(f"{at_x(n):.1f},{at_y(s):.1f}" for n, s in curves[name])
        out.append(f'<polyline class="line{i}" stroke-linejoin="round" points="{path}"/>')
        out += [f'<circle class="dot{i}" cx="{at_x(n):.1f}" cy="{at_y(s):.1f}" '
                f'r="{4 if name == "batchfetch" else 3}"/>' for n, s in curves[name]]
    # Each curve is named where it ends; those that reach the right edge beside it.
    edge = max(xs)
    wanted = {n: at_y(p[-1][1]) for n, p in curves.items() if p[-1][0] == edge}
    places = {n: (WIDTH - RIGHT + 12, y) for n, y in
              apart(wanted, 18, TOP, HEIGHT - BOTTOM).items()}
    for name, points in curves.items():
        if name not in places:
            places[name] = at_x(points[-1][0]) + 9, at_y(points[-1][1])
    for name, (x, y) in places.items():
        weight = ' font-weight="600"' if name == "batchfetch" else ""
        label = html.escape(f"{name} {curves[name][-1][1]:.1f} s")
        out.append(f'<text class="dot{index[name]}" x="{x:.1f}" y="{y + 4.5:.1f}"{weight}>'
                   f'{label}</text>')
    out.append("</svg>")
    return "\n".join(out) + "\n"
