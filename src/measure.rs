//! The program `measure`: the worker's measurement on this machine, without a cluster.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytesize::ByteSize;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use lp_measure::{Config, DirectoryId, Measurement, Method, MountTable, PlaceError, Progress, State, Target, Wanted};
use serde::Serialize;

use crate::cli::{MeasureArguments, OutputFormat};
use crate::exit::Exit;
use crate::exposition::{Exposition, Family};
use crate::text::{one_line, tell};

/// The version of the JSON document.
const JSON_VERSION: u32 = 1;
/// Nobody wants to see the progress of what takes no time.
const PROGRESS_AFTER: Duration = Duration::from_secs(1);
/// The longest path that is shown: Linux takes none that is longer.
const PATH_MAX_CHARS: usize = 4096;
/// How long nothing may be heard of the paths before one more thread asks for those that wait, …
const SILENCE: Duration = Duration::from_millis(50);
/// … and before what has not answered is left to the measuring threads, which have a clock.
const SILENCE_MAX: Duration = Duration::from_millis(500);
/// What asking for the paths may take of the time budget, as its divisor: the rest is for measuring those that answer.
const ASKING_SHARE: u32 = 4;
/// How long after the time is up its measuring threads may answer, before they count as hanging.
const ANSWER_PATIENCE: Duration = Duration::from_secs(1);
/// How often the progress is brought up to date.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

const USED: Family = Family {
    name: "local_directory_used_bytes",
    help: "Bytes allocated to the files and directories below the path, files with several links counted once.",
    labels: &["path"],
};
const APPARENT: Family = Family {
    name: "local_directory_apparent_bytes",
    help: "Sizes of the files and symbolic links below the path, each inode counted once, holes included.",
    labels: &["path"],
};
const INODES_USED: Family = Family {
    name: "local_directory_inodes_used",
    help: "Inodes below the path, its own directory included.",
    labels: &["path"],
};
const SCAN_STATE: Family = Family {
    name: "local_directory_scan_state",
    help: "How measuring the path ended, and by which method; always 1. Only complete comes with numbers.",
    labels: &["path", "state", "method"],
};

/// The families of `--output prometheus`.
pub const FAMILIES: &[&Family] = &[&USED, &APPARENT, &INODES_USED, &SCAN_STATE];

/// Runs `measure`.
pub fn main(arguments: MeasureArguments) -> Exit {
    let MeasureArguments {
        paths,
        output,
        top,
        time_budget,
        pace,
        log: _,
    } = arguments;
    let config = Config {
        top_directories: top,
        total_budget: time_budget,
        ..pace.change(Config::full_speed())
    };
    let began = Instant::now();
    let (mut asked, late) = ask(paths, time_budget.map(|budget| budget / ASKING_SHARE));
    asked.iter().for_each(Asked::tell_note);
    if let Some(silent) = first_of(asked.iter().filter(|one| one.answer.is_none())) {
        tell(&format!("note: no answer yet from {silent}"));
    }
    let config = Config {
        total_budget: config.total_budget.map(|budget| budget.saturating_sub(began.elapsed())),
        ..config
    };
    let measurements = measure(&asked, config);
    let measured = hear_late_answers(&mut asked, measurements, &late);
    let measured: Vec<(Asked, Measurement)> = asked.into_iter().zip(measured).collect();
    let written = match output {
        OutputFormat::Table => write_table(&measured),
        OutputFormat::Json => write_json(&measured),
        OutputFormat::Prometheus => write_exposition(&measured),
    };
    tell_what_hangs(&measured);
    match written {
        // A reader that has seen enough is no failure.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            tell(&format!("error: could not write the result: {error}"));
            Exit::Unexpected
        }
        _ if measured.iter().all(|(_, one)| one.state == State::Complete) => Exit::Done,
        _ => Exit::Incomplete,
    }
}

/// A path as the user gave it.
struct Asked {
    path: PathBuf,
    times: usize,
    /// What it turned out to be; nothing as long as it does not answer.
    answer: Option<Answer>,
}

/// What a path turned out to be.
struct Answer {
    /// The directory to measure, or why there is none.
    place: Result<PathBuf, (State, String)>,
    /// Where the path itself leads, if it is a symbolic link.
    followed_symlink_to: Option<PathBuf>,
}

impl Asked {
    fn place(&self) -> Option<&PathBuf> {
        self.answer.as_ref()?.place.as_ref().ok()
    }

    fn followed_symlink_to(&self) -> Option<&Path> {
        self.answer.as_ref()?.followed_symlink_to.as_deref()
    }

    /// Tells what the user may not have meant.
    fn tell_note(&self) {
        let path = printable(&self.path);
        let mut notes = Vec::new();
        if self.times > 1 {
            notes.push(format!("{path} is given {} times and measured once", self.times));
        }
        if let Some(target) = self.followed_symlink_to() {
            notes.push(format!("{path} is a symbolic link; {} is measured", printable(target)));
        } else if let Some(place) = self.place() {
            if self.path.is_relative() {
                notes.push(format!("{path} is relative; {} is measured", printable(place)));
            } else if self.path.components().ne(place.components()) {
                notes.push(format!(
                    "{path} leads through a symbolic link; {} is measured",
                    printable(place)
                ));
            }
        }
        if !notes.is_empty() {
            tell(&format!("note: {}", notes.join("; ")));
        }
    }
}

/// The first path, and how many there are beside it.
fn first_of<'a>(mut asked: impl Iterator<Item = &'a Asked>) -> Option<String> {
    let first = printable(&asked.next()?.path);
    Some(match asked.count() {
        0 => first,
        others => format!("{first} and {others} more"),
    })
}

/// Asks where the given paths lead, until all have answered or nothing more is heard; what comes later comes by the
/// receiver. A path on a file system that hangs costs a thread, which nobody joins, and keeps none of the others waiting.
fn ask(paths: Vec<PathBuf>, time_max: Option<Duration>) -> (Vec<Asked>, Receiver<(usize, Answer)>) {
    let mut asked: Vec<Asked> = Vec::new();
    for path in paths {
        match asked.iter_mut().find(|one| one.path == path) {
            Some(known) => known.times += 1,
            None => asked.push(Asked {
                path,
                times: 1,
                answer: None,
            }),
        }
    }
    let waiting: Arc<[PathBuf]> = asked.iter().map(|one| one.path.clone()).collect();
    let next = Arc::new(AtomicUsize::new(0));
    let (sender, answers) = mpsc::channel();
    let began = Instant::now();
    let mut left = asked.len();
    let mut silence = Duration::ZERO;
    let more = || ask_on_a_thread(&waiting, &next, &sender);
    more();
    while left > 0 && silence < SILENCE_MAX && time_max.is_none_or(|most| began.elapsed() < most) {
        match answers.recv_timeout(SILENCE) {
            Ok((index, answer)) => {
                asked[index].answer = Some(answer);
                left -= 1;
                silence = Duration::ZERO;
            }
            Err(_) => {
                silence += SILENCE;
                more();
            }
        }
    }
    (asked, answers)
}

/// Starts a thread that asks for one path after the other, as long as there are some that no thread has taken.
fn ask_on_a_thread(waiting: &Arc<[PathBuf]>, next: &Arc<AtomicUsize>, sender: &Sender<(usize, Answer)>) {
    let (waiting, next, sender) = (waiting.clone(), next.clone(), sender.clone());
    let thread = std::thread::Builder::new().name("ask".to_owned());
    // Where no thread can be started, the measuring says so.
    let _ = thread.spawn(move || {
        loop {
            let index = next.fetch_add(1, Relaxed);
            let Some(path) = waiting.get(index) else { break };
            // The other end is gone only when the result is out.
            let _ = sender.send((index, answer_of(path)));
        }
    });
}

/// Looks at a path. The way to it is the user's own, so links on it are followed, as by any command. It may hang.
fn answer_of(path: &Path) -> Answer {
    // Without a slash at its end, which would look through the link.
    let itself = path.components().as_path();
    let is_link = itself.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
    Answer {
        place: place_of(path),
        followed_symlink_to: if is_link { path.canonicalize().ok() } else { None },
    }
}

fn place_of(path: &Path) -> Result<PathBuf, (State, String)> {
    if path.as_os_str().is_empty() {
        return Err((State::Missing, "the path is empty".to_owned()));
    }
    let place = path.canonicalize().map_err(|error| {
        if error.raw_os_error() == Some(libc::ELOOP) {
            return (State::NotADirectory, "its symbolic links lead in a circle".to_owned());
        }
        if error.raw_os_error() == Some(libc::ENAMETOOLONG) {
            return (
                State::Missing,
                "it is longer than any path may be; measure from a directory nearer to it".to_owned(),
            );
        }
        let state = match error.kind() {
            io::ErrorKind::NotFound => State::Missing,
            io::ErrorKind::NotADirectory => State::NotADirectory,
            io::ErrorKind::PermissionDenied => State::PermissionDenied,
            _ => State::IoError,
        };
        (state, error.to_string())
    })?;
    match place.metadata() {
        Ok(metadata) if !metadata.is_dir() => Err((State::NotADirectory, "it is not a directory".to_owned())),
        _ => Ok(place),
    }
}

/// Measures what can be measured, all at once, and shows the progress. What has not answered yet is measured as it was
/// given: the threads that open it have a clock beside them.
fn measure(asked: &[Asked], config: Config) -> Vec<Measurement> {
    let (deliver, delivered) = mpsc::channel();
    let mut targets = Vec::new();
    let mut asked_of_target = Vec::new();
    let mut results: Vec<Option<Measurement>> = Vec::new();
    for (index, one) in asked.iter().enumerate() {
        match one
            .answer
            .as_ref()
            .map_or(Ok(&one.path), |answer| answer.place.as_ref())
        {
            Ok(place) => {
                targets.push(Target {
                    base: place.clone(),
                    relative: PathBuf::new(),
                    wanted: Wanted::Contents,
                });
                asked_of_target.push(index);
                results.push(None);
            }
            Err((state, detail)) => results.push(Some(Measurement::without_number(*state, Some(detail.clone())))),
        }
    }
    let deadline = config
        .total_budget
        .and_then(|budget| Instant::now().checked_add(budget)?.checked_add(ANSWER_PATIENCE));
    let running = lp_measure::start(targets, config, move |target, measurement| {
        // The other end is gone only when the time is up.
        let _ = deliver.send((target, measurement));
    });
    let mut progress = ProgressLine::new();
    while results.iter().any(Option::is_none) {
        match delivered.recv_timeout(PROGRESS_INTERVAL) {
            Ok((target, measurement)) => results[asked_of_target[target]] = Some(measurement),
            Err(RecvTimeoutError::Timeout) => progress.show(&running.progress()),
            Err(RecvTimeoutError::Disconnected) => break,
        }
        // The engine keeps its own time; this is for one whose clock hangs with the disk.
        if deadline.is_some_and(|deadline| Instant::now() > deadline) {
            break;
        }
    }
    progress.clear();
    let missing = || Measurement::without_number(State::Timeout, Some("the time was up first".to_owned()));
    results
        .into_iter()
        .map(|result| result.unwrap_or_else(missing))
        .collect()
}

/// Adds what paths that were slow to answer turned out to be, and says of each measurement what it means for the path.
fn hear_late_answers(
    asked: &mut [Asked],
    measurements: Vec<Measurement>,
    late: &Receiver<(usize, Answer)>,
) -> Vec<Measurement> {
    let is_silent =
        |(one, measurement): (&Asked, &Measurement)| one.answer.is_none() && measurement.state == State::Complete;
    let mut came_late = vec![false; asked.len()];
    loop {
        // What was measured has answered somebody, and is about to answer here too.
        let patience = if asked.iter().zip(&measurements).any(is_silent) {
            SILENCE
        } else {
            Duration::ZERO
        };
        let Ok((index, answer)) = late.recv_timeout(patience) else {
            break;
        };
        asked[index].answer = Some(answer);
        asked[index].tell_note();
        came_late[index] = true;
    }
    let one_by_one = asked.iter().zip(measurements).zip(came_late);
    one_by_one
        .map(|((one, measurement), came_late)| as_path(one, measurement, came_late))
        .collect()
}

/// What a measurement means for a path as the user gave it.
fn as_path(asked: &Asked, mut measurement: Measurement, came_late: bool) -> Measurement {
    match (&asked.answer, measurement.state) {
        (_, State::Complete) => {}
        (
            Some(Answer {
                place: Err((state, detail)),
                ..
            }),
            _,
        ) if came_late => {
            return Measurement::without_number(*state, Some(detail.clone()));
        }
        (None, State::Timeout) => measurement.state_detail = Some("the path itself does not answer".to_owned()),
        // It is the path itself that is the base here.
        (_, State::BaseMissing) => measurement.state = State::Missing,
        _ => {}
    }
    measurement
}

/// Says why the process does not end: the kernel ends no thread that waits for a file system which does not answer.
fn tell_what_hangs(measured: &[(Asked, Measurement)]) {
    let late = measured.iter().filter(|(_, one)| one.state == State::Timeout);
    let Some(late) = first_of(late.map(|(asked, _)| asked)) else {
        return;
    };
    let began = Instant::now();
    // What only came too late ends as soon as it sees so.
    while other_threads() > 0 {
        if began.elapsed() > SILENCE_MAX {
            return tell(&format!(
                "note: a disk or a server below {late} does not answer; this process ends when it does"
            ));
        }
        std::thread::sleep(SILENCE);
    }
}

/// How many threads this process has beside this one; none where /proc does not tell.
fn other_threads() -> usize {
    let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    threads.saturating_sub(1)
}

/// What is shown on a terminal while people wait.
struct ProgressLine {
    began: Instant,
    bar: Option<ProgressBar>,
}

impl ProgressLine {
    fn new() -> ProgressLine {
        ProgressLine {
            began: Instant::now(),
            bar: None,
        }
    }

    fn show(&mut self, progress: &Progress) {
        let elapsed = self.began.elapsed();
        if elapsed < PROGRESS_AFTER || !io::stderr().is_terminal() {
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template("{spinner} {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            ProgressBar::new_spinner().with_style(style)
        });
        let rate = progress.entries as f64 / elapsed.as_secs_f64();
        let current = progress.current.as_deref().map(printable).unwrap_or_default();
        bar.set_message(format!(
            "{} entries, {}, {} entries/s  {current}",
            HumanCount(progress.entries),
            ByteSize(progress.bytes).display().iec(),
            HumanCount(rate as u64)
        ));
        bar.tick();
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A path as it may be shown on a terminal: names can hold any byte, escape sequences too.
fn printable(path: &Path) -> String {
    one_line(&path.to_string_lossy(), PATH_MAX_CHARS)
}

fn write_table(measured: &[(Asked, Measurement)]) -> io::Result<()> {
    let mut rows: Vec<&(Asked, Measurement)> = measured.iter().collect();
    rows.sort_by_key(|(_, one)| std::cmp::Reverse(one.used_bytes));
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(["USED", "APPARENT", "INODES", "STATE", "PATH"]);
    for column in 0..3 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for (asked, one) in &rows {
        let inodes = one
            .inodes_used
            .map_or("-".to_owned(), |inodes| HumanCount(inodes).to_string());
        table.add_row([
            human(one.used_bytes.map(u128::from)),
            human(one.apparent_bytes),
            inodes,
            if one.method == Some(Method::Statfs) {
                format!("{} ({})", one.state, Method::Statfs)
            } else {
                one.state.to_string()
            },
            printable(&asked.path),
        ]);
    }
    if rows.len() > 1 {
        let counted = outermost(measured, &MountTable::read());
        let known = measured.iter().filter(|(_, one)| one.used_bytes.is_some()).count();
        let name = if known == rows.len() {
            "total".to_owned()
        } else {
            format!("total of {known} of {} paths", rows.len())
        };
        let numbers = |number: fn(&Measurement) -> Option<u64>| counted.iter().filter_map(move |one| number(one));
        let used = numbers(|one| one.used_bytes).map(u128::from).sum();
        let used = human((known > 0).then_some(used));
        let inodes = if known > 0 {
            HumanCount(numbers(|one| one.inodes_used).fold(0, u64::saturating_add)).to_string()
        } else {
            "-".to_owned()
        };
        table.add_row([used, String::new(), inodes, String::new(), name]);
    }
    let mut out = io::stdout().lock();
    writeln!(out, "{}", table.trim_fmt())?;
    for (asked, one) in &rows {
        write_largest(&mut out, asked, one)?;
    }
    for (asked, one) in &rows {
        write_problems(&mut out, asked, one)?;
    }
    out.flush()
}

/// Bytes for people; nothing where there is no number. More than 64 bits hold is possible: sizes of sparse files.
fn human(bytes: Option<u128>) -> String {
    const EXBIBYTE: f64 = (1u64 << 60) as f64;
    match bytes.map(|bytes| (bytes, u64::try_from(bytes))) {
        None => "-".to_owned(),
        Some((_, Ok(bytes))) => ByteSize(bytes).display().iec().to_string(),
        Some((bytes, Err(_))) => format!("{:.1} EiB", bytes as f64 / EXBIBYTE),
    }
}

/// The measurements with a number of which none lies in another, so that their sum counts nothing twice.
fn outermost<'a>(measured: &'a [(Asked, Measurement)], mounts: &MountTable) -> Vec<&'a Measurement> {
    // What has no number counts nothing of what is in it.
    let known: Vec<&(Asked, Measurement)> = measured.iter().filter(|(_, one)| one.used_bytes.is_some()).collect();
    let place_of = |asked: &Asked| mounts.place(asked.place()?);
    let places: Vec<Option<(String, PathBuf)>> = known.iter().map(|(asked, _)| place_of(asked)).collect();
    let mut at_place: HashMap<(&str, &Path), Vec<usize>> = HashMap::new();
    let mut first_of_directory: HashMap<DirectoryId, usize> = HashMap::new();
    for (index, (place, (_, one))) in places.iter().zip(&known).enumerate() {
        if let Some((device, way)) = place {
            at_place.entry((device, way)).or_default().push(index);
        }
        if let Some(directory) = one.directory {
            first_of_directory.entry(directory).or_insert(index);
        }
    }
    let is_again = |index: usize| {
        let directory = known[index].1.directory;
        directory.is_some_and(|directory| first_of_directory[&directory] < index)
    };
    // Whatever paths lead to the two; a mount inside the outer one may hide the inner one from it.
    let holds = |outer: usize, inner: usize, way: &Path| {
        let path = known[outer].0.place();
        path.is_some_and(|path| mounts.place(&path.join(way)) == places[inner])
    };
    let is_inside = |index: usize| {
        let Some((device, way)) = &places[index] else {
            return false;
        };
        way.ancestors().any(|above| {
            let outer = at_place.get(&(device, above)).into_iter().flatten();
            let inner_way = way.strip_prefix(above).unwrap_or(way);
            outer
                .filter(|outer| above != way || **outer < index)
                .any(|outer| holds(*outer, index, inner_way))
        })
    };
    let indices = (0..known.len()).filter(|index| !is_again(*index) && !is_inside(*index));
    indices.map(|index| &known[index].1).collect()
}

fn write_largest(out: &mut impl Write, asked: &Asked, one: &Measurement) -> io::Result<()> {
    if one.largest.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "\nlargest directories in {}, each with all that it holds (a file with several links, where it was met first):",
        printable(&asked.path)
    )?;
    for (path, bytes) in &one.largest {
        writeln!(
            out,
            "  {:>10}  {}",
            ByteSize(*bytes).display().iec().to_string(),
            printable(path)
        )?;
    }
    Ok(())
}

fn write_problems(out: &mut impl Write, asked: &Asked, one: &Measurement) -> io::Result<()> {
    if one.mounts_skipped > 0 {
        let (path, count) = (printable(&asked.path), one.mounts_skipped);
        writeln!(out, "\n{path}: {count} mount points inside were not entered")?;
    }
    if one.state == State::Complete {
        return Ok(());
    }
    let detail = one
        .state_detail
        .as_deref()
        .map(|detail| format!(": {}", one_line(detail, PATH_MAX_CHARS)))
        .unwrap_or_default();
    writeln!(out, "\n{} has no number: {}{detail}", printable(&asked.path), one.state)?;
    for PlaceError { path, error } in &one.first_errors {
        writeln!(out, "  {}: {error}", printable(path))?;
    }
    let more = one.errors.saturating_sub(one.first_errors.len() as u64);
    if more > 0 {
        writeln!(out, "  and {more} more")?;
    }
    Ok(())
}

/// The JSON document: a contract, see docs/measure.md.
#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    measurements: Vec<Entry<'a>>,
}

#[derive(Serialize)]
struct Entry<'a> {
    #[serde(flatten)]
    path: JsonPath,
    state: &'static str,
    state_detail: Option<&'a str>,
    method: Option<&'static str>,
    used_bytes: Option<u64>,
    apparent_bytes: Option<u128>,
    inodes_used: Option<u64>,
    entries: u64,
    errors: u64,
    first_errors: Vec<EntryError<'a>>,
    mounts_skipped: u64,
    followed_symlink_to: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    followed_symlink_to_base64: Option<String>,
    seconds: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    largest: Vec<Largest>,
}

#[derive(Serialize)]
struct EntryError<'a> {
    #[serde(flatten)]
    path: JsonPath,
    error: &'a str,
}

#[derive(Serialize)]
struct Largest {
    #[serde(flatten)]
    path: JsonPath,
    used_bytes: u64,
}

/// A path in JSON, which is Unicode: one that is not has its bytes beside it.
#[derive(Serialize)]
struct JsonPath {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_base64: Option<String>,
}

impl JsonPath {
    fn new(path: &Path) -> JsonPath {
        let bytes = path.as_os_str().as_encoded_bytes();
        let path_base64 = std::str::from_utf8(bytes).is_err().then(|| BASE64.encode(bytes));
        JsonPath {
            path: path.to_string_lossy().into_owned(),
            path_base64,
        }
    }
}

fn write_json(measured: &[(Asked, Measurement)]) -> io::Result<()> {
    let document = Document {
        version: JSON_VERSION,
        measurements: measured.iter().map(json_entry).collect(),
    };
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, &document)?;
    writeln!(out)?;
    out.flush()
}

fn json_entry((asked, one): &(Asked, Measurement)) -> Entry<'_> {
    let errors = one.first_errors.iter();
    let followed = asked.followed_symlink_to().map(JsonPath::new);
    Entry {
        path: JsonPath::new(&asked.path),
        state: one.state.as_str(),
        state_detail: one.state_detail.as_deref(),
        method: one.method.map(|method| method.as_str()),
        used_bytes: one.used_bytes,
        apparent_bytes: one.apparent_bytes,
        inodes_used: one.inodes_used,
        entries: one.entries,
        errors: one.errors,
        first_errors: errors
            .map(|place| EntryError {
                path: JsonPath::new(&place.path),
                error: &place.error,
            })
            .collect(),
        mounts_skipped: one.mounts_skipped,
        followed_symlink_to: followed.as_ref().map(|link| link.path.clone()),
        followed_symlink_to_base64: followed.and_then(|link| link.path_base64),
        seconds: one.seconds,
        largest: one
            .largest
            .iter()
            .map(|(path, used_bytes)| Largest {
                path: JsonPath::new(path),
                used_bytes: *used_bytes,
            })
            .collect(),
    }
}

/// A path as a label: bytes that are not UTF-8 are written out, and backslashes too, because two paths must not become
/// one series.
fn label_of(path: &Path) -> String {
    let mut label = String::new();
    let write_out = |label: &mut String, byte: u8| label.push_str(&format!("\\x{byte:02x}"));
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => write_out(&mut label, b'\\'),
                _ => label.push(character),
            }
        }
        chunk.invalid().iter().for_each(|byte| write_out(&mut label, *byte));
    }
    label
}

fn write_exposition(measured: &[(Asked, Measurement)]) -> io::Result<()> {
    let pairs = || measured.iter().map(|(asked, one)| (label_of(&asked.path), one));
    let mut exposition = Exposition::new();
    exposition.family(
        &USED,
        pairs().filter_map(|(path, one)| Some(([path], one.used_bytes? as f64))),
    );
    exposition.family(
        &APPARENT,
        pairs().filter_map(|(path, one)| Some(([path], one.apparent_bytes? as f64))),
    );
    exposition.family(
        &INODES_USED,
        pairs().filter_map(|(path, one)| Some(([path], one.inodes_used? as f64))),
    );
    let states = pairs().map(|(path, one)| {
        let method = one.method.map_or("", |method| method.as_str());
        ([path, one.state.as_str().to_owned(), method.to_owned()], 1.0)
    });
    exposition.family(&SCAN_STATE, states);
    let mut out = io::stdout().lock();
    out.write_all(exposition.finish().text().as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(path: &str, directory: Option<(u64, u64)>, used_bytes: Option<u64>) -> (Asked, Measurement) {
        let asked = Asked {
            path: PathBuf::from(path),
            times: 1,
            answer: Some(Answer {
                place: Ok(PathBuf::from(path)),
                followed_symlink_to: None,
            }),
        };
        let measurement = Measurement {
            used_bytes,
            directory: directory.map(|(device, inode)| DirectoryId { device, inode }),
            ..Measurement::without_number(State::Complete, None)
        };
        (asked, measurement)
    }

    #[test]
    fn bytes_for_people() {
        const EXBIBYTE: u128 = 1 << 60;
        for (bytes, expected) in [
            (None, "-"),
            (Some(0), "0 B"),
            (Some(10_000), "9.8 KiB"),
            (Some(8 * EXBIBYTE), "8.0 EiB"),
            (Some(16 * EXBIBYTE - 1), "16.0 EiB"),
            (Some(16 * EXBIBYTE), "16.0 EiB"),
            (Some(24 * EXBIBYTE), "24.0 EiB"),
        ] {
            assert_eq!(human(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn no_two_paths_have_one_label() {
        for (path, expected) in [
            (&b"/a b/\xc3\xa4\n"[..], "/a b/\u{e4}\n"),
            (b"a\xff", r"a\xff"),
            (br"a\xff", r"a\x5cxff"),
            (b"a\\\xff", r"a\x5c\xff"),
            (br"a\\", r"a\x5c\x5c"),
        ] {
            let path = Path::new(std::ffi::OsStr::from_bytes(path));
            assert_eq!(label_of(path), expected, "{path:?}");
        }
    }

    #[test]
    fn the_total_counts_each_directory_once() {
        const MOUNTS: &str = "\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 8:1 /data /bound rw - ext4 /dev/sda1 rw
31 22 8:17 / /data/disk rw - xfs /dev/sdb1 rw
32 22 0:50 / /hidden/below rw - tmpfs tmpfs rw
33 22 0:51 / /hidden rw - tmpfs tmpfs rw
";
        // Used bytes are powers of two: the sum tells which were counted.
        for (paths, expected, why) in [
            (&["/data", "/data/a"][..], 1, "one inside the other"),
            (&["/data/a", "/data"], 2, "whatever comes first"),
            (&["/data", "/database"], 3, "two names that begin alike"),
            (&["/data", "/data/disk"], 3, "a mount in between, which is not entered"),
            (&["/data", "/bound"], 1, "a bind mount of the whole"),
            (&["/data", "/bound/a/b"], 1, "inside by the bind mount"),
            (&["/data/a", "/bound"], 2, "the bind mount is the outer one"),
            (
                &["/data", "/bound/disk"],
                3,
                "below the mount that hides it from the walk",
            ),
            (&["/bound", "/bound/disk"], 1, "the bind mount is without that mount"),
            (&["/hidden", "/hidden/below"], 1, "a mount that a later one hides"),
        ] {
            let numbers = paths.iter().enumerate();
            let all: Vec<_> = numbers
                .map(|(bit, path)| measured(path, None, Some(1 << bit)))
                .collect();
            let counted = outermost(&all, &MountTable::parse(MOUNTS));
            let sum: u64 = counted.iter().filter_map(|one| one.used_bytes).sum();
            assert_eq!(sum, expected, "{why}: {paths:?}");
        }
        let nothing_known = MountTable::default();
        let check = |first, second, expected: usize| {
            let all = [measured("/a", first, Some(1)), measured("/b", second, Some(1))];
            assert_eq!(outermost(&all, &nothing_known).len(), expected, "{first:?} {second:?}");
        };
        check(Some((8, 2)), Some((8, 2)), 1);
        check(Some((8, 2)), Some((9, 2)), 2);
        check(None, None, 2);
        let without_number = [measured("/data", None, None), measured("/data/a", None, Some(1))];
        assert_eq!(outermost(&without_number, &MountTable::parse(MOUNTS)).len(), 1);
    }
}
