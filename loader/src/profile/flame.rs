//! Flame graphs: stacks as boxes, callers below, each as wide as the share of samples that it was in. One SVG file that needs
//! nothing else; a browser shows names under the pointer, and a click makes a box as wide as the picture.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Write;

const WIDTH: f64 = 1200.0;
const MARGIN: f64 = 10.0;
const ROW: f64 = 17.0;
const HEAD: f64 = 46.0;
const FOOT: f64 = 28.0;
/// Boxes that are narrower, in pixels, are left out with all above them.
const NARROWEST: f64 = 0.15;
/// Width of a letter, in pixels: of the monospaced letters that are asked for.
const LETTER: f64 = 6.7;

/// Stacks, merged from the bottom.
#[derive(Debug, Default)]
pub struct Flame {
    total: u64,
    callees: BTreeMap<String, Flame>,
}

impl Flame {
    /// Adds a stack, outermost function first.
    pub fn add<'a>(&mut self, stack: impl IntoIterator<Item = &'a str>, count: u64) {
        self.total += count;
        let mut at = self;
        for name in stack {
            if !at.callees.contains_key(name) {
                at.callees.insert(name.to_owned(), Self::default());
            }
            let Some(next) = at.callees.get_mut(name) else { return };
            next.total += count;
            at = next;
        }
    }

    fn depth(&self, scale: f64) -> usize {
        let visible = self.callees.values().filter(|c| c.total as f64 * scale >= NARROWEST);
        visible.map(|c| 1 + c.depth(scale)).max().unwrap_or(0)
    }

    /// The picture. `unit` is what is counted, for the texts under the pointer.
    pub fn to_svg(&self, title: &str, unit: &str) -> String {
        let scale = (WIDTH - 2.0 * MARGIN) / self.total.max(1) as f64;
        let rows = 1 + self.depth(scale);
        let height = HEAD + rows as f64 * ROW + FOOT;
        let mut svg = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
             font-family=\"ui-monospace, monospace\" font-size=\"11\">\n<style>g.f{{cursor:pointer}} g.f:hover rect{{stroke:#000}} \
             text{{pointer-events:none}}</style>\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fdf9f0\"/>\n\
             <text x=\"50%\" y=\"24\" font-size=\"16\" text-anchor=\"middle\">{}</text>\n\
             <text id=\"said\" x=\"{MARGIN}\" y=\"{}\"> </text>\n",
            escape(title),
            height - 10.0
        );
        let mut drawing = Drawing { svg: &mut svg, scale, height, total: self.total, unit };
        drawing.node("all", self, 0.0, 0);
        svg.push_str(SCRIPT);
        svg.push_str("</svg>\n");
        svg
    }
}

struct Drawing<'a> {
    svg: &'a mut String,
    scale: f64,
    height: f64,
    total: u64,
    unit: &'a str,
}

impl Drawing<'_> {
    fn node(&mut self, name: &str, node: &Flame, x: f64, row: usize) {
        let width = node.total as f64 * self.scale;
        if width < NARROWEST && row > 0 {
            return;
        }
        let (left, top) = (MARGIN + x, self.height - FOOT - (row + 1) as f64 * ROW);
        let share = node.total as f64 * 100.0 / self.total.max(1) as f64;
        let _ = writeln!(
            self.svg,
            "<g class=\"f\"><title>{} ({} {}, {share:.1}%)</title><rect x=\"{left:.2}\" y=\"{top:.1}\" width=\"{width:.2}\" \
             height=\"{:.1}\" rx=\"1.5\" fill=\"{}\"/><text x=\"{:.2}\" y=\"{:.1}\">{}</text></g>",
            escape(name),
            node.total,
            self.unit,
            ROW - 1.0,
            colour(name),
            left + 3.0,
            top + 12.0,
            escape(&fitting(name, width)),
        );
        let mut x = x;
        for (name, callee) in &node.callees {
            self.node(name, callee, x, row + 1);
            x += callee.total as f64 * self.scale;
        }
    }
}

/// As much of a name as fits into a box.
fn fitting(name: &str, width: f64) -> String {
    let letters = ((width - 6.0) / LETTER).max(0.0) as usize;
    match name.chars().count() {
        n if n <= letters => name.to_owned(),
        _ if letters < 3 => String::new(),
        _ => name.chars().take(letters - 1).chain(['…']).collect(),
    }
}

/// Warm for programs, blue for the kernel, grey for what has no name; the same for the same name in every picture.
fn colour(name: &str) -> String {
    let hash = name.bytes().fold(0u32, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
    let (hue, saturation) = match name {
        name if name.ends_with("_[k]") => (200 + hash % 20, 55),
        name if name.starts_with('[') => (40, 10),
        _ => (8 + hash % 42, 80),
    };
    format!("hsl({hue},{saturation}%,{}%)", 62 + hash / 64 % 14)
}

fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            // Not allowed in XML.
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('?'),
            c => out.push(c),
        }
    }
    out
}

/// Shows a box's text at the foot; a click widens it and whatever is above and below it; a click on the lowest shows all again.
const SCRIPT: &str = r#"<script><![CDATA[
const boxes = [...document.querySelectorAll('g.f')].map(g => {
  const r = g.querySelector('rect'), n = a => +r.getAttribute(a);
  return {g, r, t: g.querySelector('text'), name: g.querySelector('title').textContent, x: n('x'), w: n('width'), y: n('y')};
});
const whole = boxes[0], said = document.getElementById('said');
function show(at) {
  const scale = whole.w / at.w;
  for (const b of boxes) {
    const below = b.y >= at.y && b.x <= at.x + 0.01 && b.x + b.w >= at.x + at.w - 0.01;
    const inside = b.x >= at.x - 0.01 && b.x + b.w <= at.x + at.w + 0.01 && b.y <= at.y;
    b.g.style.display = below || inside ? '' : 'none';
    const x = below ? whole.x : whole.x + (b.x - at.x) * scale, w = below ? whole.w : b.w * scale;
    b.r.setAttribute('x', x); b.r.setAttribute('width', Math.max(w, 0)); b.t.setAttribute('x', x + 3);
    const fits = Math.floor((w - 6) / 6.7), name = b.name.replace(/ \([^(]*\)$/, '');
    b.t.textContent = name.length <= fits ? name : fits < 3 ? '' : name.slice(0, fits - 1) + '…';
  }
}
for (const b of boxes) {
  b.g.addEventListener('click', () => show(b));
  b.g.addEventListener('mouseover', () => said.textContent = b.name);
}
]]></script>
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_as_wide_as_their_share() {
        let mut flame = Flame::default();
        flame.add(["main", "a<int>&"], 30);
        flame.add(["main", "b"], 10);
        flame.add(["main"], 0);
        let svg = flame.to_svg("x & y", "samples");
        assert!(svg.contains("x &amp; y") && svg.contains("a&lt;int&gt;&amp; (30 samples, 75.0%)"), "{svg}");
        let width = |name: &str| {
            let at = svg.find(&format!("<title>{name} (")).unwrap();
            let from = svg[at..].find("width=\"").unwrap() + at + 7;
            svg[from..].split('"').next().unwrap().parse::<f64>().unwrap()
        };
        assert_eq!((width("all"), width("main"), width("b")), (1180.0, 1180.0, 295.0));
        assert_eq!(svg.matches("<g class").count(), 4);
    }

    #[test]
    fn hostile_names_stay_text() {
        let mut flame = Flame::default();
        flame.add(["]]></script><script>alert(1)\u{1b}\0"], 1);
        let svg = flame.to_svg("t", "samples");
        assert_eq!(svg.matches("<script>").count(), 1);
        assert!(!svg.contains('\u{1b}') && !svg.contains('\0'));
        assert!(Flame::default().to_svg("nothing", "samples").contains("all (0 samples"));
    }
}
