//! Dependencies of one list of steps: unknown names, circles, and what comes before what.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use super::super::Step;
use super::Names;
use crate::diagnostic::Diagnostic;

/// Who waits for whom, in one list of steps.
pub(super) struct Graph {
    /// The steps each step names in `needs`; `None`: it waits for the step above.
    needs: Vec<Option<Vec<usize>>>,
    /// The first step of the unbroken run of steps that wait for the one above.
    run_start: Vec<usize>,
    /// The place of each step in an order in which nobody comes before what they wait
    /// for; those in circles and behind them come last.
    order: Vec<usize>,
}

impl Graph {
    pub(super) fn of(steps: &[Step], names: &Names<'_>, diagnostics: &mut Vec<Diagnostic>) -> Self {
        let positions: HashMap<&str, usize> =
            steps.iter().enumerate().rev().map(|(index, step)| (step.settings.id.value.as_str(), index)).collect();
        let mut needs = Vec::with_capacity(steps.len());
        let mut run_start = Vec::with_capacity(steps.len());
        for (index, step) in steps.iter().enumerate() {
            run_start.push(match (&step.settings.needs, run_start.last()) {
                (None, Some(start)) => *start,
                _ => index,
            });
            let named = step.settings.needs.as_ref().map(|named| {
                named
                    .iter()
                    .filter_map(|need| {
                        let found = positions.get(need.value.as_str()).copied();
                        if found.is_none() {
                            diagnostics.extend(unknown(need, names, &positions));
                        }
                        found
                    })
                    .collect()
            });
            needs.push(named);
        }
        let mut graph = Self { needs, run_start, order: Vec::new() };
        let waiting = graph.arrange();
        diagnostics.extend(graph.circle(steps, &waiting));
        graph
    }

    /// Whether `later` waits for `earlier`, directly or through others.
    pub(super) fn waits_for(&self, later: usize, earlier: usize) -> bool {
        let mut seen = HashSet::new();
        // What comes first in order is nearest to the goal, and nothing before it leads there.
        let mut open = BinaryHeap::from([(Reverse(self.order[later]), later)]);
        while let Some((_, step)) = open.pop() {
            let start = self.run_start[step];
            if (start..step).contains(&earlier) || (step == earlier && step != later) {
                return true;
            }
            // Steps of one run share their start, and so everything before it.
            if seen.insert(start) {
                let before = self.needs[start].iter().flatten().filter(|step| self.order[**step] >= self.order[earlier]);
                open.extend(before.map(|step| (Reverse(self.order[*step]), *step)));
            }
        }
        false
    }

    fn predecessors(&self, step: usize) -> Vec<usize> {
        match &self.needs[step] {
            Some(named) => named.clone(),
            None => step.checked_sub(1).into_iter().collect(),
        }
    }

    /// Finds the order by taking away steps that wait for nobody. What is left waits in a
    /// circle or behind one; gives for how many each waits.
    fn arrange(&mut self) -> Vec<usize> {
        let count = self.needs.len();
        let mut waiting: Vec<usize> = (0..count).map(|step| self.predecessors(step).len()).collect();
        let mut dependents = vec![Vec::new(); count];
        for step in 0..count {
            for before in self.predecessors(step) {
                dependents[before].push(step);
            }
        }
        self.order = vec![count; count];
        let mut free: Vec<usize> = (0..count).filter(|step| waiting[*step] == 0).collect();
        let mut next = 0;
        while let Some(step) = free.pop() {
            self.order[step] = next;
            next += 1;
            for dependent in &dependents[step] {
                waiting[*dependent] -= 1;
                if waiting[*dependent] == 0 {
                    free.push(*dependent);
                }
            }
        }
        waiting
    }

    /// A circle, as a path.
    fn circle(&self, steps: &[Step], waiting: &[usize]) -> Option<Diagnostic> {
        let mut step = waiting.iter().position(|count| *count > 0)?;
        let mut path = Vec::new();
        let mut seen = HashSet::new();
        while seen.insert(step) {
            path.push(step);
            step = self.predecessors(step).into_iter().find(|before| waiting[*before] > 0)?;
        }
        let circle: Vec<usize> = path.into_iter().skip_while(|member| *member != step).collect();
        Some(self.draw(steps, &circle))
    }

    fn draw(&self, steps: &[Step], circle: &[usize]) -> Diagnostic {
        // More would bury the message.
        const DRAWN: usize = 8;
        const NAMED: usize = 20;
        let first = circle.iter().copied().min_by_key(|step| steps[*step].settings.id.span.start).unwrap_or_default();
        let turned: Vec<usize> = circle.iter().cycle().skip_while(|step| **step != first).take(circle.len()).copied().collect();
        let id = |step: usize| steps[step].settings.id.value.as_str();
        let mut path: Vec<&str> = turned.iter().chain([&first]).map(|step| id(*step)).collect();
        if path.len() > NAMED {
            path.splice(NAMED / 2..path.len() - NAMED / 2, ["…"]);
        }
        let mut diagnostic =
            Diagnostic::error("cycle", steps[first].settings.id.span, format!("these steps wait for each other: {}", path.join(" → ")));
        for (index, step) in turned.iter().enumerate().take(DRAWN) {
            let before = turned[(index + 1) % turned.len()];
            let named = steps[*step].settings.needs.iter().flatten().find(|need| need.value == id(before));
            diagnostic = match named {
                Some(need) => diagnostic.related(need.span, format!("`{}` waits for `{}`", id(*step), id(before))),
                None if *step == first => diagnostic.label(format!("waits for `{}`, the step above", id(before))),
                None => diagnostic.related(steps[*step].settings.id.span, format!("waits for `{}`, the step above", id(before))),
            };
        }
        diagnostic
    }
}

fn unknown(need: &crate::source::Spanned<String>, names: &Names<'_>, positions: &HashMap<&str, usize>) -> Option<Diagnostic> {
    match names.steps.get(need.value.as_str()) {
        // It could not be read, and that was said.
        Some(None) => None,
        Some(Some(elsewhere)) => Some(
            Diagnostic::error("needs-elsewhere", need.span, format!("`{}` is a step of `{}`", need.value, elsewhere.part.key()))
                .help("`needs` names steps of the same list; `on_failure`, `on_success` and `always` wait for all of `steps` anyway"),
        ),
        None => {
            let here = |id: &str, position: &Option<_>| positions.contains_key(id) || position.is_none();
            let known = names.steps.iter().filter(|(id, position)| here(id, position)).map(|(id, _)| *id);
            let diagnostic = Diagnostic::error("unknown-step", need.span, format!("no step has the id `{}`", need.value));
            Some(names.suggest(diagnostic, &need.value, "step", known))
        }
    }
}
