//! The run on a real cluster, from `kubectl apply -k` to what Prometheus answers.
//!
//! It needs KUBECONFIG and LP_EXPORTER_TEST_IMAGE; `settings` lists what else it takes from the environment. The cluster
//! has at least three nodes without taints, the local-path provisioner with the classes that `fixtures` names, and the
//! images on its nodes. The steps run one after the other, each leaves things as it found them, and each can be run by
//! itself (LP_EXPORTER_TEST_KEEP=1 keeps everything for the next call).

mod fixtures;
mod install;
mod kubectl;
mod observe;
mod runs;
mod settings;
mod steps;

use std::process::ExitCode;
use std::sync::OnceLock;

use anyhow::{Error, Result};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use settings::{NodeCommand, Settings};
use steps::World;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // The steps share one cluster.
    arguments.test_threads = Some(1);
    let settings = match Settings::from_environment() {
        Ok(settings) => settings,
        Err(missing) => {
            eprintln!("the run on a real cluster is skipped: {missing}");
            return if settings::require_all() {
                ExitCode::FAILURE
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let conclusion = libtest_mimic::run(&arguments, trials(&settings));
    let mut exit = conclusion.exit_code();
    if let Some(Ok(world)) = WORLD.get() {
        world.print_figures();
        if !settings.keep
            && let Err(error) = world.remove()
        {
            eprintln!("cannot clean up: {error:#}");
            exit = ExitCode::FAILURE;
        }
    }
    exit
}

static WORLD: OnceLock<Result<World, String>> = OnceLock::new();

/// The steps, in their order, with the commands of the environment without which they cannot run.
fn trials(settings: &Settings) -> Vec<Trial> {
    let s = settings;
    vec![
        trial(
            s,
            "every_claim_is_what_du_says",
            &[&s.node_exec],
            steps::numbers::every_claim_is_what_du_says,
        ),
        trial(s, "every_object_is_valid", &[], |world| {
            install::validate(&world.settings, &world.nodes)
        }),
        trial(s, "a_run_by_the_schedule", &[], steps::numbers::a_run_by_the_schedule),
        trial(
            s,
            "ten_runs_leave_what_one_leaves",
            &[],
            steps::numbers::ten_runs_leave_what_one_leaves,
        ),
        trial(s, "the_worker_is_confined", &[], steps::numbers::the_worker_is_confined),
        trial(s, "two_runs_at_once", &[], steps::runs::two_runs_at_once),
        trial(
            s,
            "a_run_that_is_ended_early",
            &[],
            steps::runs::a_run_that_is_ended_early,
        ),
        trial(s, "bad_input", &[], steps::runs::bad_input),
        trial(s, "every_right_is_needed", &[], steps::rights::every_right_is_needed),
        trial(
            s,
            "every_shape_is_measured_or_told",
            &[&s.node_exec],
            steps::shapes::every_shape_is_measured_or_told,
        ),
        trial(
            s,
            "orphans_are_what_du_says",
            &[&s.node_exec],
            steps::shapes::orphans_are_what_du_says,
        ),
        trial(
            s,
            "pods_say_where_volumes_lie",
            &[&s.node_exec],
            steps::shapes::pods_say_where_volumes_lie,
        ),
        trial(
            s,
            "a_base_that_cannot_be_mounted",
            &[],
            steps::nodes::a_base_that_cannot_be_mounted,
        ),
        trial(
            s,
            "a_node_whose_processors_are_taken",
            &[],
            steps::nodes::a_node_whose_processors_are_taken,
        ),
        trial(
            s,
            "an_earlier_worker_that_hangs",
            &[&s.node_exec],
            steps::nodes::an_earlier_worker_that_hangs,
        ),
        trial(
            s,
            "a_node_cut_off_before_a_run",
            &[&s.node_stop, &s.node_start],
            steps::nodes::cut_off_before_a_run,
        ),
        trial(
            s,
            "a_node_cut_off_during_a_run",
            &[&s.node_stop, &s.node_start],
            steps::nodes::cut_off_during_a_run,
        ),
        trial(
            s,
            "a_node_under_disk_pressure",
            &[&s.disk_pressure],
            steps::nodes::a_node_under_disk_pressure,
        ),
        trial(
            s,
            "the_pushgateway_is_replaced_in_mid_run",
            &[],
            steps::push::the_pushgateway_is_replaced_in_mid_run,
        ),
        trial(
            s,
            "the_pushgateway_is_restarted_in_mid_run",
            &[&s.node_exec],
            steps::push::the_pushgateway_is_restarted_in_mid_run,
        ),
        trial(
            s,
            "a_node_that_is_deleted_for_good",
            &[&s.node_stop, &s.node_start],
            steps::push::a_node_that_is_deleted_for_good,
        ),
        trial(
            s,
            "a_deleted_claim_leaves_nothing",
            &[],
            steps::numbers::a_deleted_claim_leaves_nothing,
        ),
    ]
}

fn trial(settings: &Settings, name: &str, needed: &[&NodeCommand], step: fn(&World) -> Result<()>) -> Trial {
    let missing: Vec<_> = needed
        .iter()
        .filter(|command| command.words.is_none())
        .map(|command| command.variable)
        .collect();
    let settings = settings.clone();
    Trial::ignorable_test(name, move || {
        if !missing.is_empty() {
            let reason = format!("{} not set", missing.join(" and "));
            return if settings.require_all {
                Err(reason.into())
            } else {
                Ok(Completion::ignored_with(reason))
            };
        }
        let world = WORLD.get_or_init(|| World::new(settings).map_err(|error| format!("{error:#}")));
        let world = world
            .as_ref()
            .map_err(|error| Failed::from(format!("there is nothing to test on: {error}")))?;
        step(world).map_err(|error: Error| Failed::from(format!("{error:#}")))?;
        Ok(Completion::Completed)
    })
}
