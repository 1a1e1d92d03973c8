"""The curve as an SVG, readable on light and on dark ground."""
import math

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 150, 24, 52
# Colours that differ in lightness too (Okabe and Ito), each with a mark of its own.
STYLE = {
    "bare": ("#999999", "4 3"), "batchfetch": ("#d55e00", ""), "go": ("#0072b2", ""),
    "curl -Z": ("#009e73", ""), "aiohttp": ("#cc79a7", ""), "aiohttp default": ("#cc79a7", "2 3"),
}
NAMES = {"bare": "bare epoll client", "go": "Go net/http", "aiohttp": "aiohttp, limit=None",
         "aiohttp default": "aiohttp, default"}


def curve(series):
    """series: client → {N: seconds}."""
    series = {k: v for k, v in series.items() if v}
    xs = sorted({n for v in series.values() for n in v})
    if not xs:
        return ""
    top = max(t for v in series.values() for t in v.values())
    y_ticks = [t for t in (2, 3, 4, 6, 8, 12, 16, 24, 32) if t <= top * 1.3]
    x0, x1 = math.log(min(xs)), math.log(max(xs) * 1.0001)
    y0, y1 = math.log(1.8), math.log(max(top * 1.05, y_ticks[-1]))

    def at(n, t):
        x = LEFT + (math.log(n) - x0) / max(x1 - x0, 1e-9) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (math.log(t) - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)
        return x, y

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
           'role="img" font-family="sans-serif" font-size="13">',
           '<title>Seconds to fetch N URLs that take 2 s each, all at once</title>',
           '<style>text{fill:#333}.grid{stroke:#ccc}'
           '@media(prefers-color-scheme:dark){text{fill:#ddd}.grid{stroke:#555}}</style>']
    for t in y_ticks:
        _, y = at(xs[0], t)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                   f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{t}</text>')
    for n in xs:
        x, _ = at(n, 2)
        out.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" '
                   f'y2="{HEIGHT - BOTTOM}"/><text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" '
                   f'text-anchor="middle">{n:,}</text>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">'
               'URLs, all in flight at once</text>'
               f'<text transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
               'text-anchor="middle">seconds</text>')
    labels = []
    for client, points in series.items():
        colour, dash = STYLE[client]
        pts = [at(n, t) for n, t in sorted(points.items())]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in pts)
        wide = 3 if client == "batchfetch" else 1.8
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" '
                   f'stroke-width="{wide}" stroke-dasharray="{dash}"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{wide}" fill="{colour}"/>' for x, y in pts]
        labels.append((pts[-1], client, colour))
    last = -1e9
    for (x, y), client, colour in sorted(labels, key=lambda v: v[0][1]):
        last = y = max(y, last + 16)
        out.append(f'<text x="{WIDTH - RIGHT + 8}" y="{y + 4:.1f}" style="fill:{colour}">'
                   f'{NAMES.get(client, client)}</text>')
    out.append("</svg>\n")
    return "\n".join(out)
