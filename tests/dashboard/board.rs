//! A dashboard as it lies in grafana/dashboards: its panels and queries, what Grafana makes of its variables, and what has
//! to hold of it without any data.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// What Grafana fills in by itself.
const BUILT_IN: [&str; 1] = ["__range"];
const UNITS: [&str; 5] = ["none", "short", "percent", "bytes", "s"];
const COLUMNS: u64 = 24;

pub(crate) struct Board {
    pub(crate) file: String,
    pub(crate) json: Value,
}

/// A query of a panel.
pub(crate) struct Target<'a> {
    pub(crate) panel: &'a Value,
    pub(crate) title: &'a str,
    pub(crate) reference: &'a str,
    pub(crate) expression: &'a str,
    pub(crate) is_range: bool,
}

/// The chosen values of the variables that are not at All.
pub(crate) type Selection = BTreeMap<&'static str, Vec<&'static str>>;

pub(crate) fn boards() -> Vec<Board> {
    let files = fs::read_dir(root().join("grafana/dashboards")).expect("a folder of the project");
    let mut paths: Vec<PathBuf> = files.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    assert!(paths.len() >= 2, "{paths:?}");
    let board = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a file of the project");
        let json = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let file = path.file_name().expect("a file has a name").to_string_lossy();
        Board {
            file: file.into_owned(),
            json,
        }
    };
    paths.into_iter().map(board).collect()
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

impl Board {
    pub(crate) fn uid(&self) -> &str {
        text(&self.json["uid"])
    }

    fn panels_and_rows(&self) -> &[Value] {
        self.json["panels"].as_array().expect("a list of panels")
    }

    pub(crate) fn panels(&self) -> impl Iterator<Item = &Value> {
        self.panels_and_rows().iter().filter(|panel| panel["type"] != "row")
    }

    pub(crate) fn targets(&self) -> impl Iterator<Item = Target<'_>> {
        self.panels().flat_map(|panel| {
            let targets = panel["targets"].as_array().expect("a list of targets");
            targets.iter().map(move |target| Target {
                panel,
                title: text(&panel["title"]),
                reference: text(&target["refId"]),
                expression: text(&target["expr"]),
                is_range: target["range"].as_bool().expect("true or false"),
            })
        })
    }

    /// The variables, and the query of each.
    pub(crate) fn variables(&self) -> Vec<(&str, &str)> {
        let variables = self.json["templating"]["list"].as_array().expect("a list of variables");
        let queried = variables.iter().filter(|variable| variable["type"] == "query");
        queried
            .map(|variable| (text(&variable["name"]), text(&variable["query"]["query"])))
            .collect()
    }

    pub(crate) fn check(&self, documented: &BTreeSet<String>) {
        self.check_settings();
        self.check_variables();
        self.check_layout();
        for panel in self.panels() {
            self.check_panel(panel);
        }
        self.check_names(documented);
    }

    fn check_settings(&self) {
        let json = &self.json;
        assert_eq!(json["schemaVersion"], 42, "{}", self.file);
        assert_eq!(json["editable"], false, "{}", self.file);
        assert!(json["id"].is_null(), "{}: Grafana gives the id", self.file);
        for field in ["title", "description", "refresh"] {
            assert!(!text(&json[field]).is_empty(), "{}: {field}", self.file);
        }
        let uids: Vec<String> = boards().iter().map(|board| board.uid().to_owned()).collect();
        assert!(self.uid().len() <= 40, "Grafana takes 40 characters");
        for url in urls(json) {
            let uid = url.strip_prefix("/d/").and_then(|rest| rest.split('?').next());
            assert!(
                uids.iter().any(|one| Some(one.as_str()) == uid),
                "{}: {url} leads nowhere",
                self.file
            );
        }
    }

    fn check_variables(&self) {
        let variables = self.json["templating"]["list"].as_array().expect("a list of variables");
        assert_eq!(variables[0]["name"], "datasource", "{}", self.file);
        assert_eq!(
            (&variables[0]["type"], &variables[0]["query"]),
            (&"datasource".into(), &"prometheus".into())
        );
        for variable in &variables[1..] {
            let name = text(&variable["name"]);
            assert_eq!(variable["refresh"], 2, "{name} follows the time range");
            // So that what lacks the label is there under All.
            assert_eq!(variable["allValue"], ".*", "{name}");
            assert_eq!(variable["includeAll"], true, "{name}");
            assert_eq!(variable["current"]["value"][0], "$__all", "{name}");
            check_source(variable, name);
        }
        let known: BTreeSet<&str> = variables.iter().map(|variable| text(&variable["name"])).collect();
        let expressions = self.targets().map(|target| target.expression);
        let queries = self.variables();
        let mut used = BTreeSet::from(["datasource"]);
        for expression in expressions.chain(queries.iter().map(|(_, query)| *query)) {
            for name in references(expression) {
                assert!(
                    known.contains(name) || BUILT_IN.contains(&name),
                    "{}: ${name} is nothing",
                    self.file
                );
                used.insert(name);
            }
        }
        for name in known {
            assert!(used.contains(name), "{}: nothing uses ${name}", self.file);
        }
    }

    /// Ids and titles are unique, everything lies on the grid, nothing lies on anything else, and no panel above its row.
    fn check_layout(&self) {
        let (mut ids, mut titles, mut taken) = (BTreeSet::new(), BTreeSet::new(), BTreeMap::new());
        for panel in self.panels_and_rows() {
            let title = text(&panel["title"]);
            assert!(
                ids.insert(whole(&panel["id"])),
                "{}: {title}: its id is taken",
                self.file
            );
            assert!(
                titles.insert((panel["type"] == "row", title)),
                "{}: {title} is there twice",
                self.file
            );
            let [x, y, width, height] = ["x", "y", "w", "h"].map(|field| whole(&panel["gridPos"][field]));
            assert!(
                width > 0 && height > 0 && x + width <= COLUMNS,
                "{}: {title}",
                self.file
            );
            for cell in (x..x + width).flat_map(|x| (y..y + height).map(move |y| (x, y))) {
                let other = taken.insert(cell, title);
                assert_eq!(other, None, "{}: {title} lies on it at {cell:?}", self.file);
            }
        }
        let order: Vec<u64> = self
            .panels_and_rows()
            .iter()
            .map(|panel| whole(&panel["gridPos"]["y"]))
            .collect();
        assert!(order.is_sorted(), "{}: a panel stands above its row", self.file);
        assert_eq!(self.panels_and_rows()[0]["type"], "row", "{}", self.file);
    }

    fn check_panel(&self, panel: &Value) {
        let title = text(&panel["title"]);
        let kind = text(&panel["type"]);
        let description = text(&panel["description"]);
        assert!(
            description.len() > 40 && description.ends_with('.'),
            "{title}: {description:?}"
        );
        let units = [&panel["fieldConfig"]["defaults"]["unit"]];
        let overrides = panel["fieldConfig"]["overrides"].as_array().expect("a list");
        let properties = overrides
            .iter()
            .flat_map(|one| one["properties"].as_array().into_iter().flatten());
        let of_overrides = properties
            .filter(|property| property["id"] == "unit")
            .map(|property| &property["value"]);
        for unit in units.into_iter().chain(of_overrides) {
            assert!(UNITS.contains(&text(unit)), "{title}: {unit}");
        }
        check_source(panel, title);
        let mut references = BTreeSet::new();
        let targets = panel["targets"].as_array().expect("a list");
        assert!(!targets.is_empty(), "{title} asks nothing");
        for target in targets {
            check_source(target, title);
            assert!(references.insert(text(&target["refId"])), "{title}: refId twice");
            assert_eq!(target["range"], kind == "timeseries", "{title}");
            assert_eq!(target["instant"], kind != "timeseries", "{title}");
            assert_eq!(target["format"] == "table", kind == "table", "{title}");
        }
        for one in overrides.iter().filter(|one| one["matcher"]["id"] == "byFrameRefID") {
            assert!(references.contains(text(&one["matcher"]["options"])), "{title}: {one}");
        }
    }

    /// Every metric that is named is documented, or one of the two that the Pushgateway adds.
    fn check_names(&self, documented: &BTreeSet<String>) {
        let queries = self.variables();
        let expressions = self.targets().map(|target| target.expression);
        let mut count = 0;
        for expression in expressions.chain(queries.iter().map(|(_, query)| *query)) {
            let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            for word in words.filter(|word| {
                ["local_volume_", "lp_exporter_", "push_"]
                    .iter()
                    .any(|p| word.starts_with(p))
            }) {
                assert!(documented.contains(word), "{}: {word} is not documented", self.file);
                count += 1;
            }
        }
        assert!(count > 0, "{} names no metric", self.file);
    }
}

/// An expression as Grafana sends it: with the chosen values, and the time range that is shown.
pub(crate) fn interpolate(expression: &str, selection: &Selection, range_seconds: f64) -> String {
    let mut names = references(expression);
    // The longer ones first: one name may be the beginning of another.
    names.sort_by_key(|name| std::cmp::Reverse(name.len()));
    let mut text = expression.to_owned();
    for name in names {
        let value = match selection.get(name).map(Vec::as_slice) {
            _ if name == "__range" => format!("{range_seconds}s"),
            None => ".*".to_owned(),
            Some([one]) => (*one).to_owned(),
            Some(several) => format!("({})", several.join("|")),
        };
        text = text.replace(&format!("${name}"), &value);
    }
    text
}

/// The names after each `$`.
fn references(expression: &str) -> Vec<&str> {
    let parts = expression.split('$').skip(1);
    parts
        .map(|part| {
            part.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
                .next()
                .unwrap_or_default()
        })
        .collect()
}

fn check_source(value: &Value, what: &str) {
    let expected = serde_json::json!({"type": "prometheus", "uid": "${datasource}"});
    assert_eq!(value["datasource"], expected, "{what}: its data source");
}

/// The links anywhere in a dashboard.
fn urls(value: &Value) -> Vec<&str> {
    match value {
        Value::Object(fields) => {
            let own = fields.get("url").and_then(Value::as_str);
            own.into_iter().chain(fields.values().flat_map(urls)).collect()
        }
        Value::Array(list) => list.iter().flat_map(urls).collect(),
        _ => Vec::new(),
    }
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn whole(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no whole number"))
}
