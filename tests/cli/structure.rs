//! The code's own shape: which module may use which.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use regex::Regex;

/// From the bottom up; a module uses only what stands before it.
const ORDER: [&str; 20] = [
    "source",
    "diagnostic",
    "clock",
    "units",
    "secret",
    "output",
    "text",
    "yaml",
    "outcome",
    "template",
    "sql",
    "target",
    "process",
    "action",
    "playbook",
    "journal",
    "plan",
    "engine",
    "report",
    "cli",
];

#[test]
fn modules_use_only_what_stands_before_them() {
    let uses = Regex::new(r"crate::([a-z_]+)").unwrap();
    let comment = Regex::new(r"(?m)^\s*//.*$").unwrap();
    let mut wrong = BTreeSet::new();
    for file in rust_files(&root().join("src")) {
        let Some(module) = module_of(&file) else { continue };
        let position = place(&module);
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for used in uses.captures_iter(&comment.replace_all(code, "")).map(|found| found[1].to_owned()) {
            if ORDER.contains(&used.as_str()) && place(&used) > position && !is_test(&file) {
                wrong.insert(format!("{module} uses {used} ({})", file.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(wrong.is_empty(), "against the direction of the data:\n{}", wrong.into_iter().collect::<Vec<_>>().join("\n"));
}

#[test]
fn every_module_says_what_it_is_for() {
    for file in rust_files(&root().join("src")) {
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.starts_with("//! "), "{} does not open with what it is responsible for", file.display());
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

fn module_of(file: &Path) -> Option<String> {
    let inside = file.strip_prefix(root().join("src")).unwrap();
    let first = inside.components().next()?.as_os_str().to_string_lossy();
    let name = first.strip_suffix(".rs").unwrap_or(&first).to_owned();
    (!matches!(name.as_str(), "lib" | "main")).then_some(name)
}

fn is_test(file: &Path) -> bool {
    file.file_stem().is_some_and(|stem| stem == "tests" || stem == "testing")
}

fn place(module: &str) -> usize {
    ORDER
        .iter()
        .position(|name| *name == module)
        .unwrap_or_else(|| panic!("{module} is not in the order of the modules; put it there and into lib.rs"))
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}
