//! The picture in the README: some panels of the dashboard, drawn as Grafana shows them, from what a Prometheus answers to
//! their queries after real runs. No number, unit, colour or name in it is typed in here.
//!
//! It is written one element a line, so that a change of it can be read.

use std::fmt::Write as _;

use crate::board::text;
use crate::panel::{Cell, Column, Panel};

/// The time range that the picture shows.
pub(crate) const RANGE_SECONDS: f64 = 86_400.0;
pub(crate) const STEP_SECONDS: f64 = 300.0;

/// What differs from machine to machine, and is not compared, lies in a group of this class.
pub(crate) const OF_THE_MACHINE: &str = "machine";
/// The class of texts that are numbers.
pub(crate) const NUMBER: &str = "number";
/// The class of the names of nodes, claims and the like.
pub(crate) const LABEL: &str = "label";

const WIDTH: f64 = 960.0;
const GAP: f64 = 8.0;
const HEADER: f64 = 38.0;
const STAT: f64 = 90.0;
/// The head of a panel, with its title.
const HEAD: f64 = 28.0;
const ROW: f64 = 21.0;
/// The width of the history; the rest are the tables beside it.
const HISTORY: f64 = 520.0;
/// What the picture shows of the tables beside the history, because there is no room for every column.
const DISK_COLUMNS: [&str; 5] = ["Node", "Size", "Available", "Full", "Promised"];
const FAILED_COLUMNS: [&str; 4] = ["Namespace", "Claim", "Node", "State"];
/// About what a letter takes of a line at most, as a part of the size of the font: which one there is nobody knows.
const LETTER: f64 = 0.6;
const CELL_FONT: f64 = 11.5;
const TITLE_FONT: f64 = 11.5;
const SMALL_FONT: f64 = 10.5;

const STYLE: &str = "text{font-family:Inter,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif;fill:#ccccdc;font-size:11.5px}\
    .title{font-size:11.5px;font-weight:600}.name{font-size:15px;font-weight:600}.muted{fill:#9a9aab;font-size:10.5px}\
    .column{fill:#6e9fff;font-size:11px;font-weight:600}.big{font-size:18px;font-weight:600}";
const BACKGROUND: &str = "#111217";
const PANEL: &str = "#181b1f";
const BORDER: &str = "#2c2f36";
const TRACK: &str = "#2a2d33";
/// The first of Grafana's colours for lines.
const LINES: [&str; 4] = ["#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a"];

/// The panels of the picture.
pub(crate) struct Picture<'a> {
    pub(crate) title: &'a str,
    pub(crate) description: &'a str,
    /// The last moment that is shown.
    pub(crate) time: f64,
    pub(crate) stats: Vec<Panel<'a>>,
    pub(crate) claims: Panel<'a>,
    pub(crate) history: Panel<'a>,
    /// The claim that was chosen for it.
    pub(crate) chosen: String,
    pub(crate) disks: Panel<'a>,
    /// What has no number.
    pub(crate) failed: Panel<'a>,
}

/// The picture as SVG.
pub(crate) fn draw(picture: &Picture) -> String {
    let claims = picture.claims.columns();
    let disks = chosen(picture.disks.columns(), &DISK_COLUMNS);
    let failed = chosen(picture.failed.columns(), &FAILED_COLUMNS);
    let claims_top = HEADER + STAT + GAP;
    let bottom_top = claims_top + height(&claims) + GAP;
    let mut svg = Svg::default();
    let bottom = height(&disks) + GAP + height(&failed);
    let whole_height = bottom_top + bottom + GAP;
    svg.line(&format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {whole_height}\" width=\"{WIDTH}\" \
         height=\"{whole_height}\" role=\"img\">"
    ));
    svg.line(&format!("<title>{}</title>", escaped(picture.title)));
    svg.line(&format!("<desc>{}</desc>", escaped(picture.description)));
    svg.line(&format!("<style>{STYLE}</style>"));
    svg.rectangle([0.0, 0.0, WIDTH, whole_height], BACKGROUND, "");
    svg.text([GAP + 4.0, 25.0], "name", "", picture.title);
    svg.text(
        [WIDTH - GAP - 4.0, 25.0],
        "muted",
        "text-anchor=\"end\"",
        "Last 24 hours",
    );

    let each = (WIDTH - GAP) / picture.stats.len() as f64;
    for (number, panel) in picture.stats.iter().enumerate() {
        let is_of_machine = is_of_machine(panel);
        svg.group(is_of_machine, |svg| {
            draw_stat(svg, panel, [GAP + number as f64 * each, HEADER, each - GAP, STAT]);
        });
    }
    let place = [GAP, claims_top, WIDTH - 2.0 * GAP, height(&claims)];
    draw_table(&mut svg, &picture.claims, &claims, place);
    draw_history(&mut svg, picture, [GAP, bottom_top, HISTORY, bottom]);
    let left = 2.0 * GAP + HISTORY;
    let width = WIDTH - GAP - left;
    svg.group(true, |svg| {
        draw_table(svg, &picture.disks, &disks, [left, bottom_top, width, height(&disks)]);
    });
    let failed_top = bottom_top + height(&disks) + GAP;
    draw_table(
        &mut svg,
        &picture.failed,
        &failed,
        [left, failed_top, width, height(&failed)],
    );
    svg.line("</svg>");
    svg.0
}

/// Whether a panel tells of the disk that the runs had, and not of what they measured on it.
fn is_of_machine(panel: &Panel) -> bool {
    panel.json["targets"].to_string().contains("local_volume_filesystem_")
}

/// The columns of these names, in the table's order.
fn chosen<'a>(mut columns: Vec<Column<'a>>, names: &[&str]) -> Vec<Column<'a>> {
    columns.retain(|column| names.contains(&column.name));
    assert_eq!(columns.len(), names.len(), "not all of {names:?} are there");
    columns
}

fn height(columns: &[Column]) -> f64 {
    let rows = columns.first().map_or(0, |column| column.cells.len());
    HEAD + ROW * (rows as f64 + 1.0) + GAP
}

fn draw_stat(svg: &mut Svg, panel: &Panel, [x, y, width, height]: [f64; 4]) {
    svg.panel([x, y, width, height]);
    let (_, answers) = &panel.answers[0];
    let shown = answers
        .first()
        .map(|(labels, points)| (labels, points.last().expect("a point").1));
    let letters = (width - 12.0) / (TITLE_FONT * LETTER);
    for (line, part) in wrapped(panel.title(), letters as usize).iter().enumerate() {
        svg.text([x + 8.0, y + 17.0 + 13.0 * line as f64], "title", "", part);
    }
    let value = shown.map(|(_, value)| value);
    let field = panel.field("");
    let colour = value.map_or("text", |value| field.colour(value));
    let place = [x + 8.0, y + height - 25.0];
    svg.text(place, &format!("big {NUMBER}"), &fill(colour), &field.show(value));
    if let Some((labels, _)) = shown.filter(|_| panel.json["options"]["textMode"] == "value_and_name") {
        let name = panel.legend(panel.answers[0].0, labels);
        svg.text([x + 8.0, y + height - 9.0], &format!("muted {LABEL}"), "", &name);
    }
}

fn draw_table(svg: &mut Svg, panel: &Panel, columns: &[Column], [x, y, width, height]: [f64; 4]) {
    svg.panel([x, y, width, height]);
    svg.text([x + 8.0, y + 18.0], "title", "", panel.title());
    let natural = |column: &Column| {
        let cells = column.cells.iter().map(|cell| shown(column, cell).chars().count());
        let letters = cells.chain([column.name.len()]).max().unwrap_or(0);
        let bar = if column.field.is_gauge() { 90.0 } else { 0.0 };
        letters as f64 * CELL_FONT * LETTER + bar
    };
    let widths: Vec<f64> = columns.iter().map(natural).collect();
    let spare = (width - 16.0 - widths.iter().sum::<f64>()) / (columns.len() as f64 - 1.0);
    assert!(spare > 0.0, "{} is too wide for the picture", panel.title());
    let mut left = x + 8.0;
    for (column, width) in columns.iter().zip(&widths) {
        draw_column(svg, column, [left, y + HEAD, *width]);
        left += width + spare;
    }
    for row in 0..columns.first().map_or(0, |column| column.cells.len()) {
        let top = y + HEAD + ROW * (row as f64 + 1.0);
        svg.rectangle([x + 1.0, top - 0.5, width - 2.0, 1.0], BORDER, "");
    }
}

fn draw_column(svg: &mut Svg, column: &Column, [x, y, width]: [f64; 3]) {
    let is_label = column.cells.iter().all(|cell| matches!(cell, Cell::Label(_)));
    let end = "text-anchor=\"end\"";
    let (edge, anchor) = if is_label { (x, "") } else { (x + width, end) };
    svg.text([edge, y + 14.0], "column", anchor, column.name);
    for (row, cell) in column.cells.iter().enumerate() {
        let line = y + ROW * (row as f64 + 1.0);
        let text = shown(column, cell);
        match cell {
            Cell::Label(_) => svg.text([x, line + 14.5], LABEL, "", &text),
            Cell::Number(None) => {}
            Cell::Number(Some(value)) => {
                let is_gauge = column.field.is_gauge();
                let colour = if is_gauge || column.field.is_coloured() {
                    fill(column.field.colour(*value))
                } else {
                    String::new()
                };
                if is_gauge {
                    let bar = width - 42.0;
                    svg.rectangle([x, line + 5.0, bar, 11.0], TRACK, "rx=\"2\"");
                    let filled = bar * column.field.filled(*value);
                    svg.rectangle(
                        [x, line + 5.0, filled, 11.0],
                        shade(column.field.colour(*value)),
                        "rx=\"2\"",
                    );
                }
                svg.text([x + width, line + 14.5], NUMBER, &format!("{end} {colour}"), &text);
            }
        }
    }
}

fn shown(column: &Column, cell: &Cell) -> String {
    match cell {
        Cell::Label(label) => label.clone(),
        Cell::Number(value) => column.field.show(*value),
    }
}

/// Lines over time, with a legend above them; the second query's are dashed and the third's dotted where the panel says so.
fn draw_history(svg: &mut Svg, picture: &Picture, [x, y, width, height]: [f64; 4]) {
    let panel = &picture.history;
    svg.panel([x, y, width, height]);
    svg.text([x + 8.0, y + 18.0], "title", "", panel.title());
    let beside = x + 8.0 + (panel.title().len() as f64 + 2.0) * TITLE_FONT * LETTER;
    svg.text([beside, y + 18.0], "muted", "", &picture.chosen);

    let field = panel.field("");
    let series: Vec<_> = panel
        .answers
        .iter()
        .flat_map(|(reference, answers)| answers.iter().map(move |series| (*reference, series)))
        .collect();
    let values = series
        .iter()
        .flat_map(|(_, (_, points))| points.iter().map(|(_, value)| *value));
    let most = values.fold(0.0, f64::max);
    let step = step(most);
    let top_value = (most / step).ceil() * step;
    let [left, right, top, bottom] = [x + 62.0, x + width - 22.0, y + 50.0, y + height - 22.0];
    let across = |time: f64| right - (right - left) * (picture.time - time) / RANGE_SECONDS;
    let up = |value: f64| bottom - (bottom - top) * value / top_value;

    let mut value = 0.0;
    while value <= top_value {
        svg.rectangle([left, up(value) - 0.5, right - left, 1.0], BORDER, "");
        let place = [left - 6.0, up(value) + 3.5];
        svg.text(
            place,
            &format!("muted {NUMBER}"),
            "text-anchor=\"end\"",
            &field.show(Some(value)),
        );
        value += step;
    }
    const TICK_SECONDS: f64 = 4.0 * 3600.0;
    let mut time = ((picture.time - RANGE_SECONDS) / TICK_SECONDS).ceil() * TICK_SECONDS;
    while time <= picture.time {
        let of_day = time as u64 % 86_400;
        let clock = format!("{:02}:{:02}", of_day / 3600, of_day % 3600 / 60);
        svg.text([across(time), bottom + 15.0], "muted", "text-anchor=\"middle\"", &clock);
        time += TICK_SECONDS;
    }

    let mut legend = left;
    for (number, (reference, (labels, points))) in series.iter().enumerate() {
        let colour = LINES[number % LINES.len()];
        let dashes = match line_fill(panel, reference) {
            "dash" => " stroke-dasharray=\"6 4\"",
            "dot" => " stroke-dasharray=\"1 4\" stroke-linecap=\"round\"",
            _ => "",
        };
        let line: Vec<String> = points
            .iter()
            .map(|(time, value)| format!("{:.1} {:.1}", across(*time), up(*value)))
            .collect();
        if dashes.is_empty() {
            let [first, last] = [points.first(), points.last()].map(|point| across(point.expect("a point").0));
            svg.line(&format!(
                "<path d=\"M{}L{last:.1} {bottom:.1} {first:.1} {bottom:.1}Z\" fill=\"{colour}\" fill-opacity=\"0.1\"/>",
                line.join("L")
            ));
        }
        svg.line(&format!(
            "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\"{dashes}/>",
            line.join("L")
        ));
        svg.line(&format!(
            "<path d=\"M{legend:.1} {0:.1}h16\" stroke=\"{colour}\" stroke-width=\"2\"{dashes}/>",
            y + 34.0
        ));
        // The claim's name stands above.
        let legend_text = panel.legend(reference, labels);
        let name = legend_text.trim_start_matches(&picture.chosen).trim_start();
        let last = field.show(points.last().map(|(_, value)| *value));
        svg.text([legend + 21.0, y + 38.0], "muted", "", name);
        let after = legend + 25.0 + name.len() as f64 * SMALL_FONT * LETTER;
        svg.text([after, y + 38.0], &format!("muted {NUMBER}"), "", &last);
        legend = after + last.len() as f64 * SMALL_FONT * LETTER + 14.0;
    }
}

/// How the lines of a query are drawn.
fn line_fill<'a>(panel: &Panel<'a>, reference: &str) -> &'a str {
    let overrides = panel.json["fieldConfig"]["overrides"].as_array().into_iter().flatten();
    let own = overrides.filter(|one| one["matcher"]["id"] == "byFrameRefID" && one["matcher"]["options"] == reference);
    let mut properties = own.flat_map(|one| one["properties"].as_array().into_iter().flatten());
    let style = properties.find(|property| property["id"] == "custom.lineStyle");
    style.map_or("solid", |style| text(&style["value"]["fill"]))
}

/// The distance of the lines of a grid: a power of two, so that it is a whole number of a unit, and five lines at most.
fn step(most: f64) -> f64 {
    let mut step = 1.0;
    while most / step > 5.0 {
        step *= 2.0;
    }
    step
}

/// Grafana's colours for the names in a dashboard.
fn shade(name: &str) -> &'static str {
    match name {
        "green" => "#73bf69",
        "orange" => "#ff9830",
        "red" => "#f2495c",
        "text" => "#ccccdc",
        other => panic!("the picture knows no colour {other}"),
    }
}

fn fill(name: &str) -> String {
    format!("style=\"fill:{}\"", shade(name))
}

/// Words in lines of so many letters.
fn wrapped(words: &str, letters: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words.split(' ') {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= letters => {
                let _ = write!(line, " {word}");
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[derive(Default)]
struct Svg(String);

impl Svg {
    fn line(&mut self, element: &str) {
        let _ = writeln!(self.0, "{element}");
    }

    fn group(&mut self, is_of_machine: bool, draw: impl FnOnce(&mut Svg)) {
        if is_of_machine {
            self.line(&format!("<g class=\"{OF_THE_MACHINE}\">"));
        }
        draw(self);
        if is_of_machine {
            self.line("</g>");
        }
    }

    fn rectangle(&mut self, [x, y, width, height]: [f64; 4], fill: &str, more: &str) {
        self.line(&format!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\" {more}/>"
        ));
    }

    fn panel(&mut self, place: [f64; 4]) {
        self.rectangle(place, PANEL, &format!("stroke=\"{BORDER}\" rx=\"3\""));
    }

    fn text(&mut self, [x, y]: [f64; 2], class: &str, more: &str, text: &str) {
        self.line(&format!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" {more}>{}</text>",
            escaped(text)
        ));
    }
}
