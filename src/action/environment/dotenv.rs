//! The dotenv syntax: `NAME='value'`, one variable after the other.
//!
//! Programs agree on what stands in single quotes and disagree on much else. What is
//! written here every POSIX shell reads back exactly; what is read here is taken
//! literally, and where another program would see something else, that is said. Nothing
//! is ever expanded or run.

use super::is_variable;
use crate::secret::Secret;

/// A variable as a file sets it.
#[derive(Debug)]
pub(in crate::action) struct Entry {
    pub(in crate::action) name: String,
    pub(in crate::action) value: Secret,
    /// From 1.
    pub(in crate::action) line: usize,
    /// Why another program may read something else.
    pub(in crate::action) doubt: Option<&'static str>,
}

/// Why a text is no dotenv file; never shows what stands there.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::action) struct Problem {
    pub(in crate::action) line: usize,
    pub(in crate::action) reason: &'static str,
}

const EXPANDED: &str = "holds `$` or a backquote outside of single quotes, which some programs replace";
const ESCAPED: &str = "holds a backslash outside of single quotes, which programs read differently";
const UNQUOTED: &str = "holds blanks or shell characters without quotes, which programs read differently";

/// Reads a whole file.
pub(in crate::action) fn parse(text: &str) -> Result<Vec<Entry>, Problem> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader { rest: text, line: 1 };
    let mut entries = Vec::new();
    while reader.skip_to_entry() {
        entries.push(reader.entry()?);
    }
    Ok(entries)
}

/// A line that sets a variable to exactly this value, for every POSIX shell.
pub(in crate::action) fn line(name: &str, value: &Secret) -> String {
    format!("{name}='{}'\n", value.expose().replace('\'', r"'\''"))
}

struct Reader<'a> {
    rest: &'a str,
    line: usize,
}

impl Reader<'_> {
    fn entry(&mut self) -> Result<Entry, Problem> {
        let line = self.line;
        let problem = |reason| Problem { line, reason };
        if let Some(after) = self.rest.strip_prefix("export").filter(|after| after.starts_with([' ', '\t'])) {
            self.rest = after.trim_start_matches([' ', '\t']);
        }
        let end = self.rest.find(['=', '\n']).filter(|end| self.rest[*end..].starts_with('='));
        let (name, after) = self.rest.split_at(end.ok_or(problem("it sets no variable"))?);
        let name = name.trim_end_matches([' ', '\t']).to_owned();
        if !is_variable(&name) {
            return Err(problem("what stands before `=` is not the name of a variable"));
        }
        self.rest = after[1..].trim_start_matches([' ', '\t']);
        let (value, doubt) = if self.rest.starts_with(['\'', '"']) { self.quoted()? } else { self.unquoted() };
        if value.contains('\0') {
            return Err(problem("a value holds a NUL character"));
        }
        Ok(Entry { name, value: Secret::new(value), line, doubt })
    }

    /// Goes to the next line that says something.
    fn skip_to_entry(&mut self) -> bool {
        loop {
            self.rest = self.rest.trim_start_matches([' ', '\t', '\r']);
            match self.rest.chars().next() {
                None => return false,
                Some('\n') => _ = self.take(1),
                Some('#') => _ = self.take(self.rest.find('\n').unwrap_or(self.rest.len())),
                Some(_) => return true,
            }
        }
    }

    /// Pieces in quotes, directly behind each other as a shell joins them.
    fn quoted(&mut self) -> Result<(String, Option<&'static str>), Problem> {
        let (mut value, mut doubt) = (String::new(), None);
        loop {
            let line = self.line;
            match self.rest.chars().next() {
                Some('\'') => {
                    let open = Problem { line, reason: "a single quote is never closed" };
                    let length = self.rest[1..].find('\'').ok_or(open)?;
                    value.push_str(&self.take(length + 2)[1..=length]);
                }
                Some('"') => self.double_quoted(&mut value, &mut doubt)?,
                Some('\\') if self.rest.starts_with("\\'") => {
                    value.push('\'');
                    self.take(2);
                }
                None | Some('\n' | ' ' | '\t' | '\r') => break,
                Some(_) => return Err(Problem { line, reason: "something stands directly behind a closing quote" }),
            }
        }
        let remains = self.rest[..self.rest.find('\n').unwrap_or(self.rest.len())].trim();
        if !(remains.is_empty() || remains.starts_with('#')) {
            return Err(Problem { line: self.line, reason: "something stands behind the value" });
        }
        self.take(self.rest.find('\n').unwrap_or(self.rest.len()));
        Ok((value, doubt))
    }

    fn double_quoted(&mut self, value: &mut String, doubt: &mut Option<&'static str>) -> Result<(), Problem> {
        let open = Problem { line: self.line, reason: "a double quote is never closed" };
        let mut letters = self.rest[1..].char_indices();
        while let Some((position, letter)) = letters.next() {
            match letter {
                '"' => {
                    self.take(position + 2);
                    return Ok(());
                }
                '\\' => match letters.next() {
                    Some((_, escaped @ ('"' | '\\' | '$' | '`'))) => value.push(escaped),
                    Some((_, 'n')) => {
                        value.push('\n');
                        *doubt = Some(ESCAPED);
                    }
                    Some((_, other)) => {
                        value.extend(['\\', other]);
                        *doubt = Some(ESCAPED);
                    }
                    None => break,
                },
                letter => {
                    if matches!(letter, '$' | '`') {
                        *doubt = Some(EXPANDED);
                    }
                    value.push(letter);
                }
            }
        }
        Err(open)
    }

    /// To the end of the line, or to a comment behind a blank.
    fn unquoted(&mut self) -> (String, Option<&'static str>) {
        let line = self.take(self.rest.find('\n').unwrap_or(self.rest.len()));
        let line = line.strip_suffix('\r').unwrap_or(line);
        let comment = line.char_indices().find(|(at, letter)| *letter == '#' && (*at == 0 || line[..*at].ends_with([' ', '\t'])));
        let value = line[..comment.map_or(line.len(), |(at, _)| at)].trim_end_matches([' ', '\t']);
        let doubt = match value {
            value if value.contains(['$', '`']) => Some(EXPANDED),
            value if value.contains('\\') => Some(ESCAPED),
            value if value.contains([' ', '\t', '&', ';', '|', '<', '>', '(', ')', '\'', '"']) => Some(UNQUOTED),
            _ => None,
        };
        (value.to_owned(), doubt)
    }

    fn take(&mut self, length: usize) -> &str {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        self.line += taken.matches('\n').count();
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Vec<(String, String, bool)> {
        parse(text).unwrap().into_iter().map(|entry| (entry.name, entry.value.expose().to_owned(), entry.doubt.is_some())).collect()
    }

    #[test]
    fn the_usual_forms_are_read_literally() {
        let text =
            "\u{feff}# comment\n\nA=1\r\nexport B = 'two words' # why\nC=\"x \\\"y\\\" \\$\"\nD=\nE='a'\\''b'\nF='1\n2'\nG=a#b # c\n";
        let expected = [("A", "1"), ("B", "two words"), ("C", "x \"y\" $"), ("D", ""), ("E", "a'b"), ("F", "1\n2"), ("G", "a#b")];
        assert_eq!(read(text), expected.map(|(name, value)| (name.to_owned(), value.to_owned(), false)));
    }

    #[test]
    fn what_programs_read_differently_is_doubted() {
        let text = "A=\"x$y\"\nB=a b\nC=postgres://h/d?a=1&b=2\nD=\"a\\nb\"\nE=`id`\nF='$x `id` \\n'\n";
        let doubted: Vec<bool> = read(text).into_iter().map(|(_, _, doubt)| doubt).collect();
        assert_eq!(doubted, [true, true, true, true, true, false]);
        assert_eq!(read(text)[3].1, "a\nb");
    }

    #[test]
    fn problems_name_the_line_and_show_nothing() {
        for (text, line) in [
            ("A=1\nhunter2\n", 2),
            ("A='1\n2\n", 1),
            ("\n2A=x", 2),
            ("A='x'y", 1),
            ("A='1\n2' 3", 2),
            ("A=\"x", 1),
            ("A=\"x\\", 1),
            ("A='\0'", 1),
        ] {
            let problem = parse(text).unwrap_err();
            assert_eq!(problem.line, line, "{text:?}");
            assert!(!problem.reason.contains("hunter2"));
        }
    }

    #[test]
    fn every_shell_reads_back_exactly_what_is_written() {
        let nasty = ["", " a ", "it's", "''", "$HOME `id` $(id)", "a\nb\n", "\\n \\", "\"", "#x", "a\rb", "!x", "ü–日本", "\t", "x=y"];
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.env");
        let text: String = nasty.iter().enumerate().map(|(index, value)| line(&format!("V{index}"), &Secret::new(*value))).collect();
        std::fs::write(&file, &text).unwrap();
        for shell in ["sh", "bash"] {
            let script = "set -a; . \"$1\"; i=0; while [ $i -lt $2 ]; do eval \"printf '%s\\\\0' \\\"\\$V$i\\\"\"; i=$((i+1)); done";
            let output = Command::new(shell).args(["-c", script, shell]).arg(&file).arg(nasty.len().to_string()).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            let values: Vec<&str> = std::str::from_utf8(&output.stdout).unwrap().split_terminator('\0').collect();
            assert_eq!(values, nasty, "{shell}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(values in prop::collection::vec("[a'\"$`\\\\ \n\r\t#=ü]{0,12}", 0..6)) {
            let text: String = values.iter().enumerate().map(|(index, value)| line(&format!("V{index}"), &Secret::new(value))).collect();
            let expected: Vec<_> = values.iter().enumerate().map(|(index, value)| (format!("V{index}"), value.clone(), false)).collect();
            prop_assert_eq!(read(&text), expected);
        }

        #[test]
        fn nothing_makes_it_panic(text in "[A='\"\\\\ \n$#export]{0,40}|\\PC{0,40}") {
            let _ = parse(&text);
        }
    }
}
