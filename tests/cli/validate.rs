//! `runbook validate`: everything that is wrong, in one pass, with its place.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::environment::TestEnv;

fn invalid() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/invalid")
}

fn names(extension: &str) -> BTreeSet<String> {
    let files = fs::read_dir(invalid()).unwrap().map(|file| file.unwrap().path());
    files
        .filter(|file| file.extension().is_some_and(|found| found == extension))
        .map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect()
}

/// Each file of `tests/invalid` is refused, with the words beside it.
#[test]
fn every_invalid_playbook_is_explained() {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(invalid());
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let names_of_playbooks = names("yaml");
    for name in &names_of_playbooks {
        let env = TestEnv::new();
        let file = format!("{name}.yaml");
        env.write(&file, fs::read(invalid().join(&file)).unwrap());
        for included in ["included/backup.yaml", "included/ship.yaml"] {
            env.write(included, fs::read(invalid().join(included)).unwrap());
        }
        let output = env.runbook(["validate", &file]).run().exits(65);
        assert_eq!(output.stdout, "", "{name}");
        let hidden = |c: char| c.is_control() && c != '\n';
        assert!(!output.stderr.contains(hidden), "{name} shows a control character: {:?}", output.stderr);
        settings.bind(|| insta::assert_snapshot!(name.as_str(), output.stderr));
    }
    assert_eq!(names("snap"), names_of_playbooks, "a snapshot without its playbook");
}

#[test]
fn marks_and_line_ends_of_other_systems_are_fine() {
    let env = TestEnv::new();
    let text =
        "\u{feff}version: 1\r\nname: sample\r\nsteps:\r\n  - id: a\r\n    shell:\r\n      run: |\r\n        echo ü\r\n        true\r\n";
    env.write("windows.yaml", text);
    let output = env.runbook(["validate", "windows.yaml"]).run().exits(0);
    assert_eq!(output.stdout, "windows.yaml: valid\n");
    assert_eq!(output.stderr, "");
}

#[test]
fn all_files_are_judged() {
    let env = TestEnv::new();
    env.write("good.yaml", "version: 1\nname: good\nsteps:\n  - {id: a, assert: {that: true}}\n");
    env.write("bad.yaml", "version: 1\nname: bad\nsteps:\n  - {id: a, assert: {that: tru}}\n");
    env.write("worse.yaml", "version: 1\nname: worse\n");
    let output = env.runbook(["validate", "bad.yaml", "good.yaml", "worse.yaml"]).run().exits(65);
    assert_eq!(output.stdout, "good.yaml: valid\n");
    insta::assert_snapshot!(output.stderr, @r"
    error[unknown-name]: `tru` is not known here
     --> bad.yaml:4:28
      |
    4 |   - {id: a, assert: {that: tru}}
      |                            ^^^
      |
      = help: known: params, secrets, steps, run, connections; text stands in quotes

    1 error
    error[missing-key]: the key `steps` is missing
     --> worse.yaml:1:1
      |
    1 | version: 1
      | ^^^^^^^^^^
      |
      = help: `steps`: The procedure. A step without `needs` waits for the step above it; steps that do not wait for each other run side by side.

    1 error
    ");
}

#[test]
fn colour_is_for_terminals() {
    let env = TestEnv::new();
    env.write("bad.yaml", "version: 2\nname: bad\nsteps:\n  - {id: a, assert: {that: true}}\n");
    assert!(!env.runbook(["validate", "bad.yaml"]).run().exits(65).stderr.contains('\u{1b}'));
    assert!(env.runbook(["--color", "always", "validate", "bad.yaml"]).run().exits(65).stderr.contains('\u{1b}'));
    assert!(!env.runbook(["--color", "always", "validate", "bad.yaml"]).env("NO_COLOR", "1").run().exits(65).stderr.is_empty());
}

#[test]
fn a_file_that_is_not_there_is_a_usage_error() {
    let output = TestEnv::new().runbook(["validate", "missing.yaml"]).run().exits(64);
    assert!(output.stderr.contains("missing.yaml"), "{}", output.stderr);
}
