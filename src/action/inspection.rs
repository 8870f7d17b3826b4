//! What an action tells about itself before anything runs: its references and the
//! files it brings along.

use std::path::Path;

use crate::diagnostic::Diagnostic;
use crate::source::{SourceFile, SourceId, Sources, Span, Spanned};
use crate::template::{Expression, Message, Place, Reference, Setting, Template};

/// One thing an action reads, and where the value ends up.
#[derive(Debug, Clone)]
pub struct Use<'a> {
    /// The dotted path; its range counts in the scalar at `span`.
    pub reference: &'a Reference,
    /// The whole scalar that holds it.
    pub span: Span,
    /// Where the value ends up.
    pub place: Place,
    /// Names that the place itself brings, e.g. `value`; `None`: any name may be such (a row's columns).
    pub local: Option<&'static [&'static str]>,
}

/// Everything an action refers to.
#[derive(Debug, Default)]
pub struct Inspection<'a> {
    /// What it reads.
    pub uses: Vec<Use<'a>>,
    /// Connections it names; `None` means the default one.
    pub connections: Vec<Option<&'a Spanned<String>>>,
    /// Channels it names.
    pub channels: Vec<&'a Spanned<String>>,
    /// What is wrong that types can't say.
    pub diagnostics: Vec<Diagnostic>,
}

impl<'a> Inspection<'a> {
    /// A decision over the run's values only.
    pub fn expression(&mut self, expression: &'a Expression) {
        self.decision(expression, Some(&[]));
    }

    /// A decision that also sees names of its own; `None` means any name, such as a row's columns.
    pub fn decision(&mut self, expression: &'a Expression, local: Option<&'static [&'static str]>) {
        self.add(&expression.references, expression.text.span, Place::Decision, local);
    }

    /// An expression whose value ends up in `place`.
    pub fn value(&mut self, expression: &'a Expression, place: Place) {
        self.add(&expression.references, expression.text.span, place, Some(&[]));
    }

    /// A template whose value ends up in `place`.
    pub fn template(&mut self, template: &'a Template, place: Place) {
        self.add(template.references(), template.text.span, place, Some(&[]));
    }

    /// A message for people.
    pub fn message(&mut self, message: &'a Message) {
        self.add(&message.references, message.text.span, Place::Message, Some(&[]));
    }

    /// A setting that may be a template.
    pub fn setting<T>(&mut self, setting: &'a Setting<T>) {
        if let Some(template) = setting.template() {
            self.template(template, Place::Decision);
        }
    }

    /// A database it works on.
    pub fn connection(&mut self, name: Option<&'a Spanned<String>>) {
        self.connections.push(name);
    }

    fn add(
        &mut self,
        references: impl IntoIterator<Item = &'a Reference>,
        span: Span,
        place: Place,
        local: Option<&'static [&'static str]>,
    ) {
        self.uses.extend(references.into_iter().map(|reference| Use { reference, span, place, local }));
    }
}

/// Reads the files that belong to a playbook.
#[derive(Debug)]
pub struct Loader<'a> {
    /// Directory of the playbook; relative names start here.
    pub directory: &'a Path,
    /// Files read so far.
    pub sources: &'a mut Sources,
    /// What went wrong.
    pub diagnostics: &'a mut Vec<Diagnostic>,
}

impl Loader<'_> {
    /// Reads a text file named at `span`; a problem becomes a diagnostic there.
    pub fn read(&mut self, name: &str, span: Span) -> Option<(SourceId, String)> {
        match SourceFile::read(&self.directory.join(name)) {
            Ok(file) => {
                let text = file.text.clone();
                Some((self.sources.add(file), text))
            }
            Err(error) => {
                let directory = if self.directory.as_os_str().is_empty() { Path::new(".") } else { self.directory };
                self.diagnostics.push(
                    Diagnostic::error("file-not-readable", span, error.to_string())
                        .help(format!("file names are relative to the playbook's directory, {}", directory.display())),
                );
                None
            }
        }
    }
}
