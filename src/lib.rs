//! runbook: a declarative runbook engine for people who operate production databases.
//!
//! Data flows one way, and a module uses only modules named above it in this list:
//! `source` → `diagnostic` → `clock` → `units` → `secret` → `output` → `text` → `yaml` →
//! `outcome` → `template` → `sql` → `target` → `process` → `action` → `playbook` →
//! `journal` → `plan` → `engine` → `report` → `cli`. A test reads the code and holds it.
//!
//! Invariants: only `cli` and `report` print; only `cli` reads the environment and
//! chooses exit codes; nothing but a [`plan::Plan`] can be executed; every change of
//! state is a [`journal::Event`]; no work starts after a failed journal write.

#![allow(clippy::result_large_err, reason = "a step's error is data for the journal, made once a step and never on a hot path")]

pub mod action;
pub mod cli;
pub mod clock;
pub mod diagnostic;
pub mod engine;
pub mod journal;
pub mod outcome;
pub mod output;
pub mod plan;
pub mod playbook;
pub mod process;
pub mod report;
pub mod secret;
pub mod source;
pub mod sql;
pub mod target;
pub mod template;
pub mod text;
pub mod units;
pub mod yaml;
