//! No action is forgotten: each is in the reference, in an example and in a playbook,
//! and the example that holds all of them runs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use runbook::action::Action;
use serde_yaml::Value;

use crate::environment::TestEnv;
use crate::stock_audit::{Application, run_of, stable};

#[test]
fn every_action_is_in_the_reference() {
    let reference = TestEnv::new().runbook(["schema", "--reference"]).run().exits(0).stdout;
    let (_, actions) = reference.split_once("\n## Actions\n").expect("the reference has a part about actions");
    let headings: BTreeSet<&str> =
        actions.lines().filter_map(|line| line.strip_prefix("### ")).map(|name| name.trim_matches('`')).collect();
    let missing: Vec<&&str> = Action::KEYS.iter().filter(|key| !headings.contains(*key)).collect();
    assert!(missing.is_empty(), "no heading in the reference: {missing:?}; there are {headings:?}");
}

#[test]
fn every_action_is_in_an_example() {
    assert_holds_every_action(&playbooks_below("examples"));
}

#[test]
fn every_action_is_in_one_short_example() {
    let folder = project().join("examples");
    assert_holds_every_action(&[folder.join("every-action.yaml"), folder.join("every-action/check.yaml")]);
}

#[test]
fn every_playbook_of_the_project_is_valid() {
    let env = TestEnv::new();
    for folder in ["examples", "playbooks"] {
        env.copy_from_project(folder);
        for playbook in playbooks_below(folder) {
            let relative = playbook.strip_prefix(project()).expect("below the project").to_owned();
            env.runbook(["validate".into(), relative.into_os_string()]).run().exits(0);
        }
    }
}

#[test]
fn the_example_of_every_action_runs() {
    let mut env = TestEnv::new();
    env.copy_from_project("examples");
    let database = env.database();
    let application = Application::healthy();
    let url = format!("url={}", application.url());
    let waiting = env.runbook(["run", "examples/every-action.yaml", "--yes", "--param", &url]).run().exits(5);
    env.runbook(["approve", &run_of(&waiting), "look", "--text", "Stock audit", "--as", "ada"]).run().exits(0);
    let done = env.runbook(["resume", &run_of(&waiting), "--yes"]).run().exits(0);
    insta::assert_snapshot!(stable(&done.stdout), @"
    every-action  20 steps, run [RUN]
      check/main: [DATABASE] (system [ID])
      main: [DATABASE] (system [ID])
      notes: runbook_tour.db
      goes on: 16 of 20 steps settled, what is done stays done

    done           [DURATION]  look → Stock audit (seen by ada)
    done           [DURATION]  go → confirmed by [USER] (--yes)
    done           [DURATION]  drop → DROP TABLE
      ┃ The tour is over
      ┃ You saw: Stock audit
    done           [DURATION]  tell → told console

    done after [DURATION]: 20 done
      runbook show [RUN]  every step, who confirmed what
    ");
    assert_eq!(database.psql("SELECT to_regclass('runbook_tour') IS NULL"), "t");
    assert!(env.path(format!("tour/{}.dump", run_of(&waiting))).exists());
}

#[track_caller]
fn assert_holds_every_action(files: &[PathBuf]) {
    let used: BTreeSet<String> = files.iter().flat_map(|file| actions_of(file)).collect();
    let missing: Vec<&&str> = Action::KEYS.iter().filter(|key| !used.contains(**key)).collect();
    assert!(missing.is_empty(), "in none of {files:?}: {missing:?}");
}

/// The actions of a playbook's steps; a gate in front of a step is not the action `confirm`.
fn actions_of(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let playbook: Value = serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let lists = ["steps", "on_failure", "on_success", "always"].into_iter().filter_map(|list| playbook.get(list)?.as_sequence());
    lists.flatten().filter_map(action_of).collect()
}

fn action_of(step: &Value) -> Option<String> {
    let keys: Vec<&str> = step.as_mapping()?.keys().filter_map(Value::as_str).filter(|key| Action::KEYS.contains(key)).collect();
    keys.iter().find(|key| **key != "confirm").or(keys.first()).map(ToString::to_string)
}

fn playbooks_below(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![project().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "yaml") {
                found.push(entry);
            }
        }
    }
    found
}

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
