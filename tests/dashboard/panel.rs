//! What Grafana makes of the answers to a panel's queries, as far as a picture shows it: columns, rows, units and colours,
//! all of them by the panel's own settings.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::board::text;
use crate::history::Labels;
use crate::servers::Series;

/// A panel, and what its queries were answered with, by their refId.
pub(crate) struct Panel<'a> {
    pub(crate) json: &'a Value,
    pub(crate) answers: Vec<(&'a str, Vec<Series>)>,
}

/// How the values of a column, or of the whole panel, are shown.
pub(crate) struct Field<'a> {
    properties: Vec<(&'a str, &'a Value)>,
    defaults: &'a Value,
}

/// A column of a table, in its place.
pub(crate) struct Column<'a> {
    pub(crate) name: &'a str,
    pub(crate) field: Field<'a>,
    /// By row.
    pub(crate) cells: Vec<Cell>,
}

/// What stands in a table.
pub(crate) enum Cell {
    Label(String),
    /// The last known one, if there is one.
    Number(Option<f64>),
}

impl<'a> Panel<'a> {
    pub(crate) fn title(&self) -> &'a str {
        text(&self.json["title"])
    }

    pub(crate) fn field(&self, column: &str) -> Field<'a> {
        let overrides = self.json["fieldConfig"]["overrides"].as_array().into_iter().flatten();
        let of_column = overrides.filter(|one| one["matcher"]["options"] == column);
        let properties = of_column.flat_map(|one| one["properties"].as_array().into_iter().flatten());
        Field {
            properties: properties
                .map(|property| (text(&property["id"]), &property["value"]))
                .collect(),
            defaults: &self.json["fieldConfig"]["defaults"],
        }
    }

    /// The name of a series by the legend of its query.
    pub(crate) fn legend(&self, reference: &str, labels: &Labels) -> String {
        let targets = self.json["targets"].as_array().into_iter().flatten();
        let target = targets.into_iter().find(|target| target["refId"] == reference);
        let mut parts = text(&target.expect("it was asked")["legendFormat"]).split("{{");
        let mut legend = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (label, rest) = part.split_once("}}").expect("what is opened is closed");
            legend.push_str(labels.get(label).map_or("", String::as_str));
            legend.push_str(rest);
        }
        legend.trim().to_owned()
    }

    /// The columns of a table: the answers merged by their labels, in the panel's order, sorted as it says. A label that
    /// no series has makes no column.
    pub(crate) fn columns(&self) -> Vec<Column<'a>> {
        let transformations = self.json["transformations"].as_array().expect("a table has some");
        let organize = &transformations.last().expect("the last one")["options"];
        let places = organize["indexByName"].as_object().expect("an object");
        let mut sources: Vec<(&String, u64)> = places
            .iter()
            .map(|(source, place)| (source, place.as_u64().expect("a place")))
            .collect();
        sources.sort_by_key(|(_, place)| *place);

        let mut merged: BTreeMap<&Labels, BTreeMap<&str, f64>> = BTreeMap::new();
        for (reference, answers) in &self.answers {
            for (labels, points) in answers {
                let value = points.last().expect("an answer has a point").1;
                merged.entry(labels).or_default().insert(reference, value);
            }
        }
        // The value's column is named by its query, unless there is only one.
        let reference_of = |source: &str| match source.strip_prefix("Value #") {
            Some(reference) => self.answers.iter().map(|(own, _)| *own).find(|own| *own == reference),
            None => (source == "Value").then(|| self.answers[0].0),
        };
        let sort = &self.json["options"]["sortBy"][0];
        let is_sorted_by = |source: &str| organize["renameByName"][source] == sort["displayName"];
        let (sorted_by, _) = sources
            .iter()
            .find(|(source, _)| is_sorted_by(source))
            .expect("a column");
        let mut rows: Vec<_> = merged.into_iter().collect();
        match (reference_of(sorted_by), sort["desc"].as_bool()) {
            (None, Some(false)) => rows.sort_by_key(|(labels, _)| labels.get(sorted_by.as_str())),
            (Some(reference), Some(true)) => rows.sort_by(|(_, one), (_, other)| {
                let [one, other] = [one, other].map(|values| values.get(reference).unwrap_or(&f64::NEG_INFINITY));
                other.total_cmp(one)
            }),
            _ => panic!("{} is sorted as no picture shows it", self.title()),
        }

        let column = |source: &str| {
            let name = text(&organize["renameByName"][source]);
            let cell = |(labels, values): &(&Labels, BTreeMap<&str, f64>)| match reference_of(source) {
                Some(reference) => Cell::Number(values.get(reference).copied()),
                None => Cell::Label(labels.get(source).cloned().unwrap_or_default()),
            };
            Column {
                name,
                field: self.field(name),
                cells: rows.iter().map(cell).collect(),
            }
        };
        let is_empty = |cell: &Cell| matches!(cell, Cell::Label(label) if label.is_empty());
        let columns = sources.iter().map(|(source, _)| column(source));
        columns.filter(|column| !column.cells.iter().all(is_empty)).collect()
    }
}

impl<'a> Field<'a> {
    fn get(&self, id: &str) -> &'a Value {
        let own = self.properties.iter().find(|(name, _)| *name == id);
        own.map_or(&self.defaults[id], |(_, value)| value)
    }

    /// A bar beside the number.
    pub(crate) fn is_gauge(&self) -> bool {
        self.get("custom.cellOptions")["type"] == "gauge"
    }

    /// The number's colour tells its threshold.
    pub(crate) fn is_coloured(&self) -> bool {
        self.get("custom.cellOptions")["type"] == "color-text"
    }

    /// How much of the bar is filled.
    pub(crate) fn filled(&self, value: f64) -> f64 {
        let [least, most] = ["min", "max"].map(|id| self.get(id).as_f64().expect("a gauge has limits"));
        ((value - least) / (most - least)).clamp(0.0, 1.0)
    }

    /// The colour of the last threshold that the value reaches.
    pub(crate) fn colour(&self, value: f64) -> &'a str {
        let steps = self.get("thresholds")["steps"].as_array().expect("a list of steps");
        let reached = steps
            .iter()
            .rfind(|step| step["value"].as_f64().is_none_or(|least| value >= least));
        text(&reached.expect("the first step has no limit")["color"])
    }

    /// A number with its unit; what the panel says where there is none.
    pub(crate) fn show(&self, value: Option<f64>) -> String {
        let Some(value) = value else {
            return self.get("noValue").as_str().unwrap_or_default().to_owned();
        };
        let decimals = self.get("decimals").as_u64().map(|decimals| decimals as usize);
        let scaled = |steps: &[(f64, &str)]| {
            let (size, name) = steps
                .iter()
                .rfind(|(size, _)| value.abs() >= *size)
                .unwrap_or(&steps[0]);
            format!("{} {name}", digits(value / size, decimals))
        };
        match text(self.get("unit")) {
            "percent" => format!("{}%", digits(value, decimals)),
            "bytes" => scaled(&BYTES),
            "s" => scaled(&SECONDS),
            _ => digits(value, decimals),
        }
    }
}

const KIB: f64 = 1024.0;
const BYTES: [(f64, &str); 5] = [
    (1.0, "B"),
    (KIB, "KiB"),
    (KIB * KIB, "MiB"),
    (KIB * KIB * KIB, "GiB"),
    (KIB * KIB * KIB * KIB, "TiB"),
];
const SECONDS: [(f64, &str); 6] = [
    (1.0, "s"),
    (60.0, "min"),
    (3600.0, "hours"),
    (86_400.0, "days"),
    (604_800.0, "weeks"),
    (31_536_000.0, "years"),
];

/// With so many decimals, or else three digits of which the last ones are no zeros.
fn digits(value: f64, decimals: Option<usize>) -> String {
    if let Some(decimals) = decimals {
        return format!("{value:.decimals$}");
    }
    let before_point = value.abs().max(1.0).log10().floor() as usize + 1;
    let shown = format!("{value:.*}", 3_usize.saturating_sub(before_point));
    if shown.contains('.') {
        shown.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        shown
    }
}
