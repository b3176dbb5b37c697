//! How a run can end, as the process tells it.

use std::process::ExitCode;

/// The exit codes of every subcommand: a closed set, documented in docs/configuration.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Everything that could be done was done. Another run being active is no failure either.
    Done,
    /// Something that the program did not foresee.
    Unexpected,
    /// Arguments, settings or the Job template are wrong: trying again without changing them is useless.
    BadConfiguration,
    /// The run did what it could, something was left out, and `--strict` was given.
    Incomplete,
    /// The Kubernetes API was out of reach or refused a request that the run cannot do without.
    Kubernetes,
    /// The Pushgateway was out of reach or refused what was pushed.
    Pushgateway,
    /// The worker was given a plan of another version.
    PlanVersion,
    /// The run was ended before it was done: by a signal, or because another run took the Lease.
    Interrupted,
}

impl Exit {
    /// Every way to end, in the order of its code.
    pub const ALL: [Exit; 8] = [
        Exit::Done,
        Exit::Unexpected,
        Exit::BadConfiguration,
        Exit::Incomplete,
        Exit::Kubernetes,
        Exit::Pushgateway,
        Exit::PlanVersion,
        Exit::Interrupted,
    ];

    /// The number that the process exits with. Code 2 is the one that clap uses for bad arguments.
    pub const fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Unexpected => 1,
            Exit::BadConfiguration => 2,
            Exit::Incomplete => 3,
            Exit::Kubernetes => 4,
            Exit::Pushgateway => 5,
            Exit::PlanVersion => 6,
            Exit::Interrupted => 7,
        }
    }

    /// The way that belongs to an exit code, if it is one of ours.
    pub fn from_code(code: i32) -> Option<Exit> {
        Exit::ALL.into_iter().find(|exit| i32::from(exit.code()) == code)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_lead_back() {
        for (index, exit) in Exit::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(exit.code()), index, "{exit:?}");
            assert_eq!(Exit::from_code(i32::from(exit.code())), Some(exit));
        }
        assert_eq!(Exit::from_code(137), None);
        assert_eq!(Exit::from_code(-1), None);
    }
}
