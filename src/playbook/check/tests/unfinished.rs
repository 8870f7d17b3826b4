//! Playbooks that somebody is in the middle of typing.

use proptest::prelude::*;

use super::*;

const SAMPLE: &str = r#"version: 1
name: sample
params:
  limit: {type: integer, default: "{{ env.LIMIT }}"}
secrets: {token: {env: TOKEN}}
connections:
  main: {url: "{{ env.DATABASE_URL }}", expect: {database: größe, role: primary}}
channels: {chat: {webhook: "{{ secrets.token }}"}}
defaults: {retry: {max: 2, on: [transient]}}
steps:
  - id: pre-check
    sql:
      query: |
        SELECT count(*) AS n -- 'ü'
          FROM racks WHERE id > {{ params.limit }}
      expect: {each_row: "n == 0"}
    outputs: {n: "value + 1"}
  - id: b
    needs: [pre-check]
    when: steps['pre-check'].outputs.n > 0
    for_each: [1, 2]
    as: rack
    shell: {run: "echo $RACK", env: {RACK: "{{ rack }}"}}
    undo: irreversible
  - id: c
    done_when: &index {index_valid: idx}
    notify: {to: [console, chat], message: "{% if run.id %}{{ steps.b.status }}{% endif %}"}
always:
  - {id: d, done_when: *index, confirm: {message: Go on?, timeout: 5m}}
"#;

/// Judges a text; every place must lie in it.
fn judge(text: &str) -> String {
    let mut sources = Sources::default();
    let source = sources.add(SourceFile::new("x.yaml", text));
    let diagnostics = match yaml::parse(&sources, source) {
        Err(diagnostics) => diagnostics,
        Ok(tree) => {
            let mut decoded = decode(&tree);
            if let Some(playbook) = &decoded.playbook {
                let written = Written { tree: &tree, sources: &sources, complete: decoded.complete, included: false };
                decoded.diagnostics.extend(check(playbook, &written));
            }
            decoded.diagnostics
        }
    };
    for diagnostic in &diagnostics {
        for span in std::iter::once(diagnostic.span).chain(diagnostic.related.iter().map(|(span, _)| *span)) {
            assert!(text.get(span.start as usize..span.end as usize).is_some(), "{diagnostic:?} lies outside of the text");
        }
    }
    render(&sources, &diagnostics, true)
}

#[test]
fn the_sample_itself_is_sound() {
    assert_eq!(judge(SAMPLE), "");
}

proptest! {
    #[test]
    fn any_edit_is_judged_without_panic(edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..40, "[ -~\n\té{}:'\"|>&*!-]{0,6}"), 1..6)) {
        let mut text: Vec<char> = SAMPLE.chars().collect();
        for (at, deleted, inserted) in edits {
            let start = at.index(text.len() + 1);
            let end = (start + deleted).min(text.len());
            text.splice(start..end, inserted.chars());
        }
        judge(&text.into_iter().collect::<String>());
    }

    #[test]
    fn any_lines_in_any_order_are_judged_without_panic(lines in prop::collection::vec(any::<prop::sample::Index>(), 0..30), indents in prop::collection::vec(0usize..4, 30)) {
        let sample: Vec<&str> = SAMPLE.lines().collect();
        let text: String = lines.iter().zip(indents).map(|(line, indent)| format!("{}{}\n", " ".repeat(indent), sample[line.index(sample.len())])).collect();
        judge(&text);
    }
}
