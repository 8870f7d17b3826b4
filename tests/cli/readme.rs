//! The README keeps its word: its first command works, and what it names exists.

use std::collections::BTreeSet;
use std::path::Path;

use regex::Regex;

use crate::environment::TestEnv;

fn readme() -> String {
    std::fs::read_to_string(project().join("README.md")).expect("the project has a README")
}

#[test]
fn its_first_command_works() {
    let readme = readme();
    let commands = readme.split("```sh\n").nth(1).expect("a block of commands").split("```").next().expect("it ends");
    let arguments = commands.trim().strip_prefix("cargo run -- ").expect("the first command runs runbook");
    let env = TestEnv::new();
    env.copy_from_project("examples");
    // With an answer to its question, because nobody sits here.
    env.runbook(arguments.split(' ').chain(["--yes"])).run().exits(0);
}

#[test]
fn its_second_command_exists() {
    let readme = readme();
    let commands = readme.split("```sh\n").nth(2).expect("a second block of commands").split("```").next().expect("it ends");
    let script = project().join(commands.trim());
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&script).expect("the script is there").permissions());
    assert!(mode & 0o111 != 0, "{} cannot be executed", script.display());
}

#[test]
fn the_commands_and_options_that_it_names_exist() {
    for (place, text) in [("README.md", readme()), ("examples/stock-audit/README.md", example_readme())] {
        for (subcommand, options) in commands_in(&text) {
            let help = TestEnv::new().runbook([&subcommand, "--help"]).run();
            assert_eq!(help.code(), Some(0), "{place} names `runbook {subcommand}`");
            for option in options {
                assert!(help.stdout.contains(&option), "{place} names `runbook {subcommand} {option}`:\n{}", help.stdout);
            }
        }
    }
}

#[test]
fn the_files_that_it_names_exist() {
    let named = Regex::new(r"`([\w./-]+/[\w./-]*|[A-Z]+(?:\.md)?)`|\]\(([^)#:]+)\)").unwrap();
    let mut seen = BTreeSet::new();
    let readme = readme();
    for found in named.captures_iter(&readme) {
        let file = found.get(1).or(found.get(2)).expect("one of the two").as_str();
        let known = file.contains('/') || file.ends_with(".md") || file == "LICENSE";
        if known && seen.insert(file.to_owned()) {
            assert!(project().join(file).exists(), "README.md names {file}");
        }
    }
    assert!(seen.contains("CONTRIBUTING.md") && seen.contains("playbooks/"), "{seen:?}");
}

/// `runbook SUBCOMMAND … --option` in code, and the program's own options.
fn commands_in(text: &str) -> Vec<(String, Vec<String>)> {
    let command = Regex::new(r"\brunbook ([a-z]+)((?: [^\n`]*)?)").unwrap();
    let option = Regex::new(r"(?:^|\s)(--[a-z-]+)").unwrap();
    let code = Regex::new(r"(?s)```sh\n(.*?)```|`([^`\n]+)`").unwrap();
    let code: Vec<&str> = code.captures_iter(text).filter_map(|found| Some(found.get(1).or(found.get(2))?.as_str())).collect();
    let found = code.iter().flat_map(|code| command.captures_iter(code)).map(|found| {
        let options = option.captures_iter(&found[2]).map(|option| option[1].to_owned()).collect();
        (found[1].to_owned(), options)
    });
    let found: Vec<_> = found.collect();
    assert!(found.len() > 2, "{found:?}");
    found
}

fn example_readme() -> String {
    std::fs::read_to_string(project().join("examples/stock-audit/README.md")).expect("the example has a README")
}

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
