//! The dashboards of grafana/ on real servers: every query of every panel and of every variable is asked of a Prometheus
//! of both generations that holds hours of real runs, and what it answers is compared with what was pushed.
//!
//! Grafana itself is not started. What it would make of the files is checked here: their structure, the columns of its
//! tables, the files that provision it.

mod board;
mod cluster;
mod expected;
mod history;
mod panel;
mod picture;
mod servers;
mod shop;
mod stage;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use futures::future::join_all;
use serde_json::Value;

use board::{Board, Selection, Target, boards, interpolate, root, text};
use cluster::{Cluster, RUNS};
use expected::{Moment, Table};
use history::{Labels, PART_SECONDS, SCRAPE_SECONDS, Sample, Scrape};
use panel::Panel;
use picture::Picture;
use servers::{Generation, Prometheus, Pushgateway, Series};
use shop::Shop;

/// kubectl keeps a copy of what it applies in an annotation, and Kubernetes takes no larger ones.
const ANNOTATIONS_LIMIT_BYTES: usize = 256 * 1024;
/// Somewhat more than five hours, so that no scrape lies at its very beginning.
const RANGE_SECONDS: f64 = 18_001.0;
/// What is left of the Python exporter on the Pushgateway: a metric of the same name, of which the dashboards show nothing.
const PYTHON_EXPORTER: &str = "# TYPE local_volume_stats_capacity_bytes gauge
local_volume_stats_capacity_bytes{node=\"node-1\",persistentvolumeclaim=\"old\"} 1e15
";
const METRICS: &str = "docs/metrics.md";
const PICTURE: &str = "docs/dashboard.svg";
/// When the picture's day ends, as seconds since 1970: at noon (UTC), so that every picture has the same hours.
const PICTURE_END: f64 = 1_767_960_000.0;
/// The numbers of two pictures are the same within this part of them, or in all but the last digit: directories take what
/// their file system gives them.
const PICTURE_TOLERANCE: f64 = 0.02;

#[test]
fn the_dashboards_are_well_formed() {
    let documented = documented_metrics();
    let boards = boards();
    let uids: BTreeSet<&str> = boards.iter().map(Board::uid).collect();
    assert_eq!(uids.len(), boards.len(), "two dashboards have one uid");
    for board in &boards {
        board.check(&documented);
    }
}

/// Every panel shows something on the old generation of Prometheus and Pushgateway, and it is true.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_old_generation_answers_every_query() {
    if let Some(generation) = servers::generation("old") {
        check_generation(&generation).await;
    }
}

/// The same on the new one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_new_generation_answers_every_query() {
    if let Some(generation) = servers::generation("new") {
        check_generation(&generation).await;
    }
}

async fn check_generation(generation: &Generation) {
    // Two clusters with the same nodes and claims: what forgets to join by cluster mixes them up.
    let two = World::new(generation, &[(Some("east"), 1), (Some("west"), 2)]).await;
    let chosen = Selection::from([
        ("cluster", vec!["east"]),
        ("namespace", vec!["shop", "ops"]),
        ("node", vec!["node-1", "node-2"]),
        ("storageclass", vec!["local-path"]),
        ("persistentvolumeclaim", vec!["orders-db", "uploads", "queue"]),
    ]);
    two.check(&Selection::new(), true).await;
    two.check(&chosen, false).await;
    two.check_variables(&[("cluster", "east"), ("cluster", "west")]).await;

    let one = World::new(generation, &[(None, 1)]).await;
    one.check(&Selection::new(), true).await;
    one.check_variables(&[]).await;
    one.check_what_was_written_for_the_python_exporter().await;

    check_silence(generation).await;
}

/// Where nothing of lp-exporter is known, no panel says that all is well.
async fn check_silence(generation: &Generation) {
    let pushgateway = Pushgateway::start(generation).await;
    pushgateway.push("projectbeta", PYTHON_EXPORTER).await;
    let other = format!("# TYPE other gauge\nother 1 {:.3}\n# EOF\n", now() - SCRAPE_SECONDS);
    let prometheus = Prometheus::start(generation, &other, &pushgateway).await;
    let time = prometheus.first_scrape().await;
    for board in boards() {
        for target in board.targets() {
            let expression = interpolate(target.expression, &Selection::new(), RANGE_SECONDS);
            let answers = prometheus.query(&expression, Some(time)).await;
            assert!(answers.is_empty(), "{}: {answers:?}", target.title);
        }
    }
}

/// A Prometheus with hours of runs of some clusters, the last of them scraped from a Pushgateway.
struct World {
    clusters: usize,
    prometheus: Prometheus,
    scrapes: Vec<Scrape>,
    _pushgateway: Pushgateway,
}

impl World {
    async fn new(generation: &Generation, names: &[(Option<&'static str>, u64)]) -> World {
        let pushgateway = Pushgateway::start(generation).await;
        pushgateway.push("projectbeta", PYTHON_EXPORTER).await;
        let clusters = join_all(names.iter().map(|(name, scale)| Cluster::new(*name, *scale))).await;
        let mut runs: Vec<Vec<Sample>> = Vec::new();
        for number in 0..RUNS {
            let url = pushgateway.url();
            join_all(clusters.iter().map(|cluster| cluster.run(number, &url))).await;
            runs.push(pushgateway.samples().await);
        }
        let end = (now() - SCRAPE_SECONDS).floor();
        let mut scrapes = history::history(&runs, end - runs.len() as f64 * PART_SECONDS);
        let prometheus = Prometheus::start(
            generation,
            &history::open_metrics(&scrapes, clusters.len() > 1),
            &pushgateway,
        )
        .await;
        scrapes.push(Scrape {
            time: prometheus.first_scrape().await,
            samples: pushgateway.samples().await,
        });
        World {
            clusters: clusters.len(),
            prometheus,
            scrapes,
            _pushgateway: pushgateway,
        }
    }

    /// Compares every answer with what was pushed: at the live scrape, and while a node is cut off.
    async fn check(&self, selection: &Selection, wants_data: bool) {
        let live = self.scrapes.len() - 1;
        for board in boards() {
            for target in board.targets() {
                let answers = self.check_target(&target, live, selection).await;
                if wants_data {
                    assert!(!answers.is_empty(), "{}: {} has no data", board.file, target.title);
                }
                for scrape in [history::NOT_LATE_YET, history::LATE] {
                    self.check_target(&target, scrape, selection).await;
                }
            }
            if wants_data {
                for panel in board.panels().filter(|panel| panel["type"] == "table") {
                    self.check_columns(panel, &board, live).await;
                }
            }
        }
        if wants_data {
            // One node of one cluster is never Ready and never pushed, another is cut off.
            for (scrape, late) in [(live, 1.0), (history::NOT_LATE_YET, 1.0), (history::LATE, 2.0)] {
                let range = self.range(scrape);
                let moment = self.moment(scrape, selection, &range);
                let expected = moment.expected("Nodes without fresh numbers", "A");
                assert_eq!(expected.into_values().sum::<f64>(), late);
            }
        }
    }

    async fn check_target(&self, target: &Target<'_>, scrape: usize, selection: &Selection) -> Vec<Series> {
        let time = self.scrapes[scrape].time;
        let expression = interpolate(target.expression, selection, RANGE_SECONDS);
        let answers = if target.is_range {
            self.prometheus
                .query_range(&expression, time - 3600.0, time, 300.0)
                .await
        } else {
            self.prometheus.query(&expression, Some(time)).await
        };
        let range = self.range(scrape);
        let expected = self
            .moment(scrape, selection, &range)
            .expected(target.title, target.reference);
        // What was among the ten largest before and is no more has no point now.
        let last = answers.iter().filter_map(|(labels, points)| {
            let last = points.iter().find(|(at, _)| (at - time).abs() < 0.01);
            last.map(|(_, value)| (labels.clone(), *value))
        });
        let found: Table = last.collect();
        let what = format!("{} {} at {time}: {expression}", target.title, target.reference);
        let same_series = found.keys().eq(expected.keys());
        assert!(same_series, "{what}\nanswered {found:#?}\ninstead of {expected:#?}");
        for (labels, value) in &expected {
            let is_close = (found[labels] - value).abs() <= 1e-6 * value.abs() + 2e-3;
            assert!(is_close, "{what}\n{labels:?}: {} instead of {value}", found[labels]);
        }
        self.check_legend(target, &answers);
        answers
    }

    fn moment<'a>(&'a self, scrape: usize, selection: &'a Selection, range: &'a [&'a Scrape]) -> Moment<'a> {
        Moment {
            time: self.scrapes[scrape].time,
            samples: &self.scrapes[scrape].samples,
            range,
            selection,
        }
    }

    /// The scrapes in the time range that is shown.
    fn range(&self, scrape: usize) -> Vec<&Scrape> {
        let begin = self.scrapes[scrape].time - RANGE_SECONDS;
        let until = &self.scrapes[..=scrape];
        until.iter().filter(|scrape| scrape.time > begin).collect()
    }

    /// Every label in a legend is one of the series.
    fn check_legend(&self, target: &Target, answers: &[Series]) {
        let Some(query) =
            (target.panel["targets"].as_array().into_iter().flatten()).find(|one| one["refId"] == target.reference)
        else {
            return;
        };
        let legend = query["legendFormat"].as_str().unwrap_or_default();
        let labels = legend.split("{{").skip(1).filter_map(|part| part.split("}}").next());
        for label in labels.filter(|label| self.has_label(label)) {
            let is_there = answers.iter().all(|(labels, _)| labels.contains_key(label));
            assert!(
                is_there,
                "{}: the legend names {label}, which {answers:?} lack",
                target.title
            );
        }
    }

    /// Whether series can have a label here: without a grouping label there is no cluster.
    fn has_label(&self, label: &str) -> bool {
        label != "cluster" || self.clusters > 1
    }

    /// Every column of a table is shown by a name or left out, and whatever is said of a column is said of one that is there.
    async fn check_columns(&self, panel: &Value, board: &Board, scrape: usize) {
        let title = text(&panel["title"]);
        let targets: Vec<Target> = board.targets().filter(|target| target.title == title).collect();
        let mut columns = BTreeSet::from(["Time".to_owned()]);
        for target in &targets {
            let answers = self.check_target(target, scrape, &Selection::new()).await;
            columns.extend(answers.into_iter().flat_map(|(labels, _)| labels.into_keys()));
            columns.insert(match targets.len() {
                1 => "Value".to_owned(),
                _ => format!("Value #{}", target.reference),
            });
        }
        let transformations = panel["transformations"].as_array().expect("a table has some");
        assert_eq!(transformations[0]["id"] == "merge", targets.len() > 1, "{title}");
        let organize = &transformations.last().expect("the last one")["options"];
        let keys = |field: &str| -> BTreeSet<String> {
            let object = organize[field].as_object().expect("an object");
            object.keys().filter(|key| self.has_label(key)).cloned().collect()
        };
        let (renamed, excluded) = (keys("renameByName"), keys("excludeByName"));
        assert!(renamed.is_disjoint(&excluded), "{title}: shown and left out");
        assert_eq!(
            renamed.union(&excluded).cloned().collect::<BTreeSet<_>>(),
            columns,
            "{title}"
        );
        assert_eq!(keys("indexByName"), renamed, "{title}: the order of its columns");

        let shown = organize["renameByName"].as_object().expect("an object").values();
        let shown: BTreeSet<&str> = shown.map(text).collect();
        let overrides = panel["fieldConfig"]["overrides"].as_array().into_iter().flatten();
        let of_columns = overrides.map(|one| text(&one["matcher"]["options"]));
        let sorted = panel["options"]["sortBy"].as_array().into_iter().flatten();
        for column in of_columns.chain(sorted.map(|one| text(&one["displayName"]))) {
            assert!(shown.contains(column), "{title}: there is no column {column}");
        }
        // A link to one claim carries the fields of the row.
        for part in panel.to_string().split("__data.fields.").skip(1) {
            let field = part.split('}').next().unwrap_or_default();
            assert!(shown.contains(field), "{title}: there is no field {field}");
        }
    }

    /// Every variable offers what there is.
    async fn check_variables(&self, clusters: &[(&str, &str)]) {
        let last = &self.scrapes.last().expect("some").samples;
        for board in boards() {
            for (name, query) in board.variables() {
                let inner = query
                    .strip_prefix("label_values(")
                    .and_then(|rest| rest.strip_suffix(')'));
                let (selector, label) = inner
                    .and_then(|inner| inner.rsplit_once(", "))
                    .expect("label_values(…, …)");
                assert_eq!(label, name);
                let selector = interpolate(selector, &Selection::new(), RANGE_SECONDS);
                let mut found = self.prometheus.label_values(label, &selector).await;
                found.sort();
                let metric = selector.split('{').next().unwrap_or_default();
                let ours = last
                    .iter()
                    .filter(|sample| sample.label("job").starts_with("lp-exporter"));
                let values = ours
                    .filter(|sample| sample.name == metric)
                    .map(|sample| sample.label(label));
                let expected: BTreeSet<&str> = values.filter(|value| !value.is_empty()).collect();
                assert!(found.iter().map(String::as_str).eq(expected), "{query}: {found:?}");
                let wanted = clusters
                    .iter()
                    .filter(|(variable, _)| *variable == name)
                    .map(|(_, value)| *value);
                for value in wanted {
                    assert!(found.iter().any(|one| one == value), "{query} lacks {value}: {found:?}");
                }
                assert!(!found.is_empty() || !self.has_label(name), "{query} has no values");
            }
        }
    }

    /// The dashboard and the alert that people have from the Python exporter's time: the two metrics have the names and
    /// labels that they ask for.
    async fn check_what_was_written_for_the_python_exporter(&self) {
        const SHARE: &str = "100 * local_volume_stats_used_bytes{} / ignoring(job) local_volume_stats_capacity_bytes{}";
        let time = self.scrapes.last().expect("some").time;
        let ask = async |expression: &str| self.prometheus.query(expression, Some(time)).await;
        let samples = &self.scrapes.last().expect("some").samples;
        let of = |metric: &'static str| samples.iter().filter(move |sample| sample.name == metric);
        let (used, capacity) = ("local_volume_stats_used_bytes", "local_volume_stats_capacity_bytes");

        let without_job = |labels: &Labels| {
            let mut labels = labels.clone();
            labels.remove("job");
            labels
        };
        let share = |one: &Sample| {
            let of_volume = |other: &&Sample| without_job(&other.labels) == without_job(&one.labels);
            100.0 * one.value / of(capacity).find(of_volume).expect("its capacity").value
        };
        let above = of(used).filter(|one| share(one) > 80.0).count();
        assert!(above > 0, "no claim is above the threshold");
        assert_eq!(ask(&format!("{SHARE} > 80")).await.len(), above);
        assert_eq!(ask(SHARE).await.len(), of(used).count());
        assert_eq!(ask(&format!("{used}{{}}")).await.len(), of(used).count());
        assert_eq!(ask(capacity).await.len(), of(capacity).count());

        let sum = |metric| of(metric).map(|sample| sample.value).sum::<f64>();
        let number = async |expression: String| ask(&expression).await.first().expect("a number").1[0].1;
        assert_eq!(number(format!("sum({used}{{}})")).await, sum(used));
        assert_eq!(number(format!("sum({capacity}{{}})")).await, sum(capacity));
        let whole = number(format!("100 * sum({used}{{}}) / ignoring(job) sum({capacity}{{}})")).await;
        assert!((whole - 100.0 * sum(used) / sum(capacity)).abs() < 1e-9, "{whole}");

        let volumes = self.prometheus.label_values("persistentvolumeclaim", used).await;
        assert!(!volumes.is_empty(), "no claim has a number");
        for volume in volumes {
            let chosen = format!("{{persistentvolumeclaim={volume:?}}}");
            for expression in [
                format!("100 * {used}{chosen} / ignoring(job){capacity}{chosen}"),
                format!("{used}{chosen}"),
                format!("{capacity}{chosen}"),
            ] {
                assert_eq!(ask(&expression).await.len(), self.clusters, "{expression}");
            }
        }
    }
}

/// The picture of the README shows what the dashboard's panels answer, but for the numbers of the disk that the runs had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_picture_shows_what_the_dashboard_answers() {
    let Some(generation) = servers::generation("new") else {
        return;
    };
    let svg = picture(&generation).await;
    let found = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dashboard.svg");
    fs::write(&found, &svg).expect("the folder for temporary files can be written to");
    let (drawn, kept) = (texts(&svg), texts(&checked_in_picture()));
    let is_same = drawn.len() == kept.len() && drawn.iter().zip(&kept).all(|(one, other)| one.is_like(other));
    assert!(
        is_same,
        "the picture changed; if it should: cp {} {PICTURE}\n{drawn:#?}\ninstead of {kept:#?}",
        found.display()
    );
}

/// The picture is a whole SVG which names what the README says of it, and the README shows it.
#[test]
fn the_picture_is_whole() {
    let kept = texts(&checked_in_picture());
    let names: Vec<&str> = kept.iter().map(|text| text.text.as_str()).collect();
    for title in picture_panels() {
        assert!(names.join(" ").contains(&title), "{PICTURE} lacks {title}");
    }
    for name in [shop::SHOWN_CLAIM.0, shop::SHOWN_CLAIM.1, "node-1", "Requested", "Share"] {
        assert!(names.contains(&name), "{PICTURE} lacks {name}");
    }
    assert!(kept.iter().filter(|text| text.is_number).count() > 40, "{kept:#?}");
    let readme = fs::read_to_string(root().join("README.md")).expect("a file of the project");
    assert!(
        readme.contains(&format!("({PICTURE})")),
        "README.md does not show {PICTURE}"
    );
}

/// The titles of the panels in the picture, the stats first.
fn picture_panels() -> Vec<String> {
    let board = main_board();
    let stats = board.panels().filter(|panel| panel["type"] == "stat");
    let titles: Vec<String> = stats.map(|panel| text(&panel["title"]).to_owned()).collect();
    let others = ["Claims", "Bytes", "Disks", "Volumes that could not be measured"].map(str::to_owned);
    titles.into_iter().chain(others).collect()
}

fn main_board() -> Board {
    let found = boards().into_iter().find(|board| board.uid() == "lp-exporter");
    found.expect("the dashboard of the volumes")
}

/// Draws the picture anew: real runs over a day, and the panels' own queries.
async fn picture(generation: &Generation) -> String {
    let pushgateway = Pushgateway::start(generation).await;
    let shop = Shop::new().await;
    let mut runs: Vec<Vec<Sample>> = Vec::new();
    for number in 0..shop::RUNS {
        shop.run(number, &pushgateway.url()).await;
        runs.push(pushgateway.samples().await);
    }
    let start = PICTURE_END - runs.len() as f64 * PART_SECONDS;
    let scrapes = history::repeated(&runs, start, PART_SECONDS, |_, elapsed| elapsed);
    let time = scrapes.last().expect("some").time;
    let prometheus = Prometheus::start(generation, &history::open_metrics(&scrapes, false), &pushgateway).await;

    let board = main_board();
    let (namespace, claim) = shop::SHOWN_CLAIM;
    let chosen = Selection::from([("namespace", vec![namespace]), ("persistentvolumeclaim", vec![claim])]);
    let mut panels = Vec::new();
    for title in picture_panels() {
        let selection = if title == "Bytes" {
            chosen.clone()
        } else {
            Selection::new()
        };
        panels.push(ask(&prometheus, &board, &title, &selection, time).await);
    }
    let mut others = panels.split_off(panels.len() - 4).into_iter();
    let mut next = || others.next().expect("four panels");
    let [claims, history, disks, failed] = [next(), next(), next(), next()];
    picture::draw(&Picture {
        title: text(&board.json["title"]),
        description: text(&board.json["description"]),
        time: PICTURE_END,
        stats: panels,
        claims,
        history,
        chosen: format!("{namespace}/{claim}"),
        disks,
        failed,
    })
}

/// A panel with the answers to its queries.
async fn ask<'a>(
    prometheus: &Prometheus,
    board: &'a Board,
    title: &str,
    selection: &Selection,
    time: f64,
) -> Panel<'a> {
    let mut answers = Vec::new();
    let mut json = &Value::Null;
    for target in board.targets().filter(|target| target.title == title) {
        let expression = interpolate(target.expression, selection, picture::RANGE_SECONDS);
        let answer = if target.is_range {
            let start = time - picture::RANGE_SECONDS;
            prometheus
                .query_range(&expression, start, time, picture::STEP_SECONDS)
                .await
        } else {
            prometheus.query(&expression, Some(time)).await
        };
        answers.push((target.reference, answer));
        json = target.panel;
    }
    assert!(!answers.is_empty(), "there is no panel {title}");
    Panel { json, answers }
}

fn checked_in_picture() -> String {
    fs::read_to_string(root().join(PICTURE)).unwrap_or_default()
}

/// A text of the picture.
#[derive(Debug)]
struct Text {
    text: String,
    is_number: bool,
    /// It is a number or a name that another machine may have otherwise.
    is_of_machine: bool,
}

impl Text {
    /// Whether a picture that was drawn elsewhere may say this in the same place.
    fn is_like(&self, other: &Text) -> bool {
        if self.text == other.text || self.is_of_machine && other.is_of_machine {
            return true;
        }
        if !self.is_number || !other.is_number {
            return false;
        }
        let parts = |text: &Text| -> Option<(f64, usize, String)> {
            let end = text.text.find(|c: char| !(c.is_ascii_digit() || "-.".contains(c)))?;
            let (number, unit) = text.text.split_at(end);
            let decimals = number.split_once('.').map_or(0, |(_, decimals)| decimals.len());
            Some((number.parse().ok()?, decimals, unit.to_owned()))
        };
        let (Some(one), Some(other_one)) = (parts(self), parts(other)) else {
            return false;
        };
        let last_digit = 10_f64.powi(-(one.1.min(other_one.1) as i32));
        let is_close = (one.0 - other_one.0).abs() <= (PICTURE_TOLERANCE * one.0.abs()).max(1.001 * last_digit);
        one.2 == other_one.2 && is_close
    }
}

/// The texts of a picture in their order.
fn texts(svg: &str) -> Vec<Text> {
    let document = roxmltree::Document::parse(svg).unwrap_or_else(|error| panic!("{PICTURE}: {error}"));
    let has_class = |node: &roxmltree::Node, class: &str| {
        let classes = node.attribute("class").unwrap_or_default();
        classes.split(' ').any(|one| one == class)
    };
    let texts = document.descendants().filter(|node| node.has_tag_name("text"));
    texts
        .map(|node| Text {
            text: node.text().unwrap_or_default().to_owned(),
            is_number: has_class(&node, picture::NUMBER),
            is_of_machine: node.ancestors().any(|one| has_class(&one, picture::OF_THE_MACHINE))
                && (has_class(&node, picture::NUMBER) || has_class(&node, picture::LABEL)),
        })
        .collect()
}

/// The ConfigMap for Grafana's sidecar holds the dashboards, whether it is built alone or with everything else, and can be
/// applied by kubectl.
#[test]
fn the_config_map_holds_the_dashboards() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    for part in ["grafana", "jobs", "manifests"] {
        let copied = Command::new("cp")
            .arg("-r")
            .arg(root().join(part))
            .arg(folder.path())
            .status();
        assert!(copied.expect("cp is a program of every system").success());
    }
    let overlay = folder.path().join("manifests/overlays/with-dashboard");
    fs::create_dir(&overlay).expect("a directory");
    let kustomization = "resources: [../default]\ncomponents: [../../components/dashboard]\n";
    fs::write(overlay.join("kustomization.yaml"), kustomization).expect("a file");
    for built in [folder.path().join("grafana"), overlay] {
        let Some(objects) = kustomize(&built) else {
            return;
        };
        let is_ours = |object: &&serde_yaml::Value| object["metadata"]["labels"]["grafana_dashboard"] == "1";
        let maps: Vec<_> = objects.iter().filter(is_ours).collect();
        let [map] = maps[..] else {
            panic!("{}: {} maps", built.display(), maps.len());
        };
        assert_eq!(
            (&map["kind"], &map["metadata"]["namespace"]),
            (&"ConfigMap".into(), &"lp-exporter".into())
        );
        let data = map["data"].as_mapping().expect("files");
        assert_eq!(data.len(), boards().len());
        for board in boards() {
            let text = data[board.file.as_str()].as_str().expect("text");
            assert_eq!(serde_json::from_str::<Value>(text).expect("JSON"), board.json);
        }
        let size = serde_json::to_string(map).expect("JSON").len();
        assert!(
            size < ANNOTATIONS_LIMIT_BYTES,
            "{size} bytes do not fit into an annotation"
        );
    }
}

/// What a folder's kustomization builds; nothing without kubectl.
fn kustomize(folder: &Path) -> Option<Vec<serde_yaml::Value>> {
    use serde::Deserialize;
    let Ok(built) = Command::new("kubectl").arg("kustomize").arg(folder).output() else {
        servers::skip("the ConfigMap of the dashboards", "there is no kubectl on the PATH");
        return None;
    };
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let text = String::from_utf8(built.stdout).expect("text");
    let objects = serde_yaml::Deserializer::from_str(&text).map(serde_yaml::Value::deserialize);
    Some(objects.map(|object| object.expect("YAML")).collect())
}

/// The provisioning files name the folder of the dashboards and a Prometheus that is the default.
#[test]
fn grafana_is_provisioned() {
    let yaml = |path: &str| -> Value {
        let text = fs::read_to_string(root().join("grafana/provisioning").join(path)).expect("a file of the project");
        serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
    };
    let provider = &yaml("dashboards/lp-exporter.yaml")["providers"][0];
    assert_eq!(
        (&provider["type"], &provider["allowUiUpdates"]),
        (&"file".into(), &false.into())
    );
    assert_eq!(provider["options"]["path"], "/var/lib/grafana/dashboards/lp-exporter");
    let source = &yaml("datasources/prometheus.yaml")["datasources"][0];
    assert_eq!(
        (&source["type"], &source["access"]),
        (&"prometheus".into(), &"proxy".into())
    );
    assert_eq!(source["isDefault"], true);
    let document = fs::read_to_string(root().join("docs/dashboard.md")).expect("a file of the project");
    for value in [&provider["options"]["path"], &source["url"]] {
        assert!(
            document.contains(text(value)),
            "docs/dashboard.md does not name {value}"
        );
    }
}

/// What docs/dashboard.md says of each panel is said of one that is there, and no panel is left out.
#[test]
fn the_document_names_every_panel() {
    let document = fs::read_to_string(root().join("docs/dashboard.md")).expect("a file of the project");
    let rows = document
        .lines()
        .filter_map(|line| line.strip_prefix("| **")?.split("**").next());
    let named: Vec<&str> = rows.collect();
    let boards = boards();
    let titles: Vec<&str> = boards
        .iter()
        .flat_map(Board::panels)
        .map(|panel| text(&panel["title"]))
        .collect();
    assert_eq!(named, titles);
}

/// The metrics of docs/metrics.md, and those that it says the Pushgateway adds.
fn documented_metrics() -> BTreeSet<String> {
    let text = fs::read_to_string(root().join(METRICS)).expect("a file of the project");
    let rows = text
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let added = text.split('`').filter(|word| word.starts_with("push_"));
    rows.chain(added).map(str::to_owned).collect()
}

fn now() -> f64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.expect("a clock after 1970").as_secs_f64()
}
