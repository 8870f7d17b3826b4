//! What the statements of a dump are about: objects they create, tables they fill, roles
//! they need.

use super::classify::created_object;
use super::cursor::Words;
use super::lexer::TokenKind;

/// An object that a `CREATE` makes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Created {
    /// As `DROP` names it: `TABLE`, `MATERIALIZED VIEW` …
    pub kind: &'static str,
    /// As the statement writes it.
    pub name: String,
    /// A routine's parameters, without their defaults.
    pub arguments: Option<String>,
}

/// A table that a `COPY` fills.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// As the statement writes it.
    pub table: String,
    /// Its columns, likewise.
    pub columns: Vec<String>,
}

/// Objects with a name of their own; longer kinds before those they begin with. What belongs
/// to a table (indexes, triggers, policies, rules) is not among them.
const KINDS: &[(&[&str], &str)] = &[
    (&["access", "method"], "ACCESS METHOD"),
    (&["aggregate"], "AGGREGATE"),
    (&["collation"], "COLLATION"),
    (&["conversion"], "CONVERSION"),
    (&["domain"], "DOMAIN"),
    (&["event", "trigger"], "EVENT TRIGGER"),
    (&["extension"], "EXTENSION"),
    (&["foreign", "data", "wrapper"], "FOREIGN DATA WRAPPER"),
    (&["foreign", "table"], "FOREIGN TABLE"),
    (&["function"], "FUNCTION"),
    (&["materialized", "view"], "MATERIALIZED VIEW"),
    (&["procedure"], "PROCEDURE"),
    (&["publication"], "PUBLICATION"),
    (&["schema"], "SCHEMA"),
    (&["sequence"], "SEQUENCE"),
    (&["server"], "SERVER"),
    (&["subscription"], "SUBSCRIPTION"),
    (&["table"], "TABLE"),
    (&["text", "search", "configuration"], "TEXT SEARCH CONFIGURATION"),
    (&["text", "search", "dictionary"], "TEXT SEARCH DICTIONARY"),
    (&["text", "search", "parser"], "TEXT SEARCH PARSER"),
    (&["text", "search", "template"], "TEXT SEARCH TEMPLATE"),
    (&["type"], "TYPE"),
    (&["view"], "VIEW"),
];

/// The object a statement creates, if it is of a kind with a name of its own.
pub fn created(statement: &str) -> Option<Created> {
    let words = Words::new(statement);
    if !words.is(0, "create") {
        return None;
    }
    let start = created_object(&words);
    let (kind, label) = KINDS.iter().find(|(kind, _)| words.are(start, kind))?;
    let index = words.skip(start + kind.len(), &["if", "not", "exists"]);
    let (name, next) = written_name(&words, index)?;
    let routine = matches!(*label, "FUNCTION" | "PROCEDURE" | "AGGREGATE");
    let arguments = (routine && words.is_open(next)).then(|| parameters(&words, next));
    Some(Created { kind: label, name, arguments })
}

/// The table that a `COPY` fills, if it is one.
pub fn copied(statement: &str) -> Option<Copied> {
    let words = Words::new(statement);
    if !words.is(0, "copy") {
        return None;
    }
    let (table, next) = written_name(&words, 1)?;
    let inside = next + 1..words.behind(next).saturating_sub(1).max(next + 1);
    let columns = inside.filter(|index| words.is_name(*index)).map(|index| words.str(index).to_owned()).collect();
    Some(Copied { table, columns })
}

/// The roles a statement names: new owners, those who are granted something, those a policy
/// is for.
pub fn roles(statement: &str) -> Vec<String> {
    let words = Words::new(statement);
    let behind = |word: &str| (0..words.len()).rfind(|index| words.is(*index, word)).map(|index| index + 1);
    let start = if words.is(0, "alter") && !words.is(1, "default") {
        (0..words.len()).rfind(|index| words.are(*index, &["owner", "to"]) && index + 3 == words.len()).map(|index| index + 2)
    } else if words.is_any(0, &["grant", "alter"]) {
        behind("to")
    } else if words.is(0, "revoke") {
        behind("from")
    } else if words.are(0, &["create", "policy"]) {
        (0..words.len()).find(|index| words.is(*index, "to")).map(|index| index + 1)
    } else {
        None
    };
    let mut found: Vec<String> = start.map(|start| list(&words, start)).unwrap_or_default();
    if words.are(0, &["alter", "default", "privileges", "for"]) {
        found.extend(list(&words, 5));
    }
    found.retain(|role| !matches!(role.as_str(), "public" | "current_user" | "session_user" | "current_role"));
    found
}

fn list(words: &Words<'_>, start: usize) -> Vec<String> {
    let mut names = Vec::new();
    let mut index = start;
    while words.is_name(index) {
        names.push(meant(words.str(index)));
        index += 1;
        if words.kind(index) != Some(&TokenKind::Comma) {
            break;
        }
        index += 1;
    }
    names
}

/// The name that a word stands for.
fn meant(word: &str) -> String {
    match word.strip_prefix('"').and_then(|word| word.strip_suffix('"')) {
        Some(quoted) => quoted.replace("\"\"", "\""),
        None => word.to_lowercase(),
    }
}

fn written_name(words: &Words<'_>, index: usize) -> Option<(String, usize)> {
    let (_, next) = words.name(index)?;
    let range = words.tokens.get(index)?.range.start..words.tokens.get(next - 1)?.range.end;
    Some((words.text[range].to_owned(), next))
}

/// The parameters between parentheses that open at `open`, each cut where its default begins.
fn parameters(words: &Words<'_>, open: usize) -> String {
    let end = words.behind(open).saturating_sub(1);
    let mut parameters: Vec<String> = Vec::new();
    let mut index = open + 1;
    while index < end {
        let start = index;
        let mut without_default = None;
        while index < end && words.kind(index) != Some(&TokenKind::Comma) {
            if words.is(index, "default") || words.str(index) == "=" {
                without_default.get_or_insert(index);
            }
            index = words.behind(index).max(index + 1);
        }
        let last = without_default.unwrap_or(index).max(start + 1) - 1;
        parameters.push(words.text[words.tokens[start].range.start..words.tokens[last].range.end].to_owned());
        index += 1;
    }
    parameters.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_created_is_named_as_drop_takes_it() {
        for (statement, expected) in [
            ("CREATE TABLE public.loads (\n id int)", "TABLE public.loads"),
            ("CREATE UNLOGGED TABLE IF NOT EXISTS \"Odd schema\".\"a.b\" (id int)", "TABLE \"Odd schema\".\"a.b\""),
            ("CREATE MATERIALIZED VIEW app.mv AS SELECT 1", "MATERIALIZED VIEW app.mv"),
            ("CREATE OR REPLACE VIEW v AS SELECT 1", "VIEW v"),
            ("CREATE EXTENSION IF NOT EXISTS pgcrypto WITH SCHEMA public", "EXTENSION pgcrypto"),
            ("CREATE TYPE app.mood AS ENUM ('a')", "TYPE app.mood"),
            (
                "CREATE FUNCTION app.f(a integer DEFAULT 1, b text DEFAULT 'x, y'::text, OUT c numeric(3,1)) RETURNS x LANGUAGE sql AS $$ $$",
                "FUNCTION app.f(a integer, b text, OUT c numeric(3,1))",
            ),
            ("CREATE FUNCTION app.g() RETURNS trigger LANGUAGE plpgsql AS $$ $$", "FUNCTION app.g()"),
            ("CREATE AGGREGATE app.agg(integer) (sfunc = int4pl)", "AGGREGATE app.agg(integer)"),
            ("CREATE AGGREGATE app.all(*) (sfunc = int4pl)", "AGGREGATE app.all(*)"),
            ("CREATE UNIQUE INDEX i ON a (x)", ""),
            ("CREATE TRIGGER t BEFORE INSERT ON a EXECUTE FUNCTION f()", ""),
            ("ALTER TABLE a ADD b int", ""),
        ] {
            let found = created(statement).map_or_else(String::new, |it| {
                let arguments = it.arguments.map_or_else(String::new, |arguments| format!("({arguments})"));
                format!("{} {}{arguments}", it.kind, it.name)
            });
            assert_eq!(found, expected, "{statement}");
        }
    }

    #[test]
    fn copies_name_table_and_columns() {
        let found = copied("COPY public.\"my loads\" (id, \"from\", to_) FROM stdin").unwrap();
        assert_eq!((found.table.as_str(), found.columns), ("public.\"my loads\"", vec!["id".into(), "\"from\"".into(), "to_".into()]));
        assert_eq!(copied("COPY t FROM stdin").unwrap(), Copied { table: "t".into(), columns: Vec::new() });
        assert_eq!(copied("SELECT 1"), None);
    }

    #[test]
    fn roles_are_found_where_they_must_exist() {
        for (statement, expected) in [
            ("ALTER TABLE public.loads OWNER TO \"App \"\"x\"\"\"", "App \"x\""),
            ("ALTER TABLE public.loads ADD COLUMN owner int", ""),
            ("GRANT SELECT(id),INSERT ON TABLE public.to TO Reader WITH GRANT OPTION", "reader"),
            ("GRANT ALL ON TABLE a TO PUBLIC", ""),
            ("REVOKE ALL ON TABLE a FROM x, y", "x y"),
            ("ALTER DEFAULT PRIVILEGES FOR ROLE me IN SCHEMA app GRANT SELECT ON TABLES TO you", "you me"),
            ("CREATE POLICY p ON t TO reader, PUBLIC USING (true)", "reader"),
            ("SELECT 1", ""),
        ] {
            assert_eq!(roles(statement).join(" "), expected, "{statement}");
        }
    }
}
