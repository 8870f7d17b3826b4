//! The exit codes: part of the interface, never renumbered.

use crate::engine::{Ending, Signal};

/// For `--help`.
pub(super) const HELP: &str = "\
Exit codes:
  0    done
  1    the engine failed, e.g. its journal
  3    a step failed
  4    a step's end is unknown and needs a decision
  5    a gate waits for a person
  6    a check refused before anything was changed
  7    another run holds the lock
  64   usage error
  65   the playbook or its inputs are not valid
  130  interrupted (143: terminated)";

/// How a command ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: everything asked for is done.
    Done,
    /// 1: the engine itself failed, e.g. its journal.
    Engine,
    /// 3: a step failed.
    StepFailed,
    /// 4: a step's end is unknown and needs a decision.
    Unknown,
    /// 5: a gate waits for a person.
    Waiting,
    /// 6: a check refused before anything was changed.
    Refused,
    /// 7: another run holds the lock.
    Locked,
    /// 64: the command line can't be understood.
    Usage,
    /// 65: the playbook or its inputs are not valid.
    Invalid,
    /// 130: interrupted from the keyboard.
    Interrupted,
    /// 143: asked to terminate.
    Terminated,
}

impl Exit {
    /// The number.
    pub fn code(self) -> i32 {
        match self {
            Self::Done => 0,
            Self::Engine => 1,
            Self::StepFailed => 3,
            Self::Unknown => 4,
            Self::Waiting => 5,
            Self::Refused => 6,
            Self::Locked => 7,
            Self::Usage => 64,
            Self::Invalid => 65,
            Self::Interrupted => 130,
            Self::Terminated => 143,
        }
    }
}

impl From<Signal> for Exit {
    fn from(signal: Signal) -> Self {
        match signal {
            Signal::Interrupt => Self::Interrupted,
            Signal::Terminate | Signal::Hangup => Self::Terminated,
        }
    }
}

impl From<Ending> for Exit {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Done => Self::Done,
            Ending::Failed => Self::StepFailed,
            Ending::Unknown => Self::Unknown,
            Ending::Waiting => Self::Waiting,
            Ending::Interrupted(signal) => signal.into(),
            Ending::Quit => Self::Interrupted,
        }
    }
}
