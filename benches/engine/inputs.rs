//! Playbooks and justfiles of any size, always the same for the same size.

use std::fmt::Write as _;

/// How many steps of a layered graph may run side by side.
const WIDTH: usize = 100;

/// Steps one after the other, all with the same action.
pub fn chained_playbook(steps: usize, action: &str) -> String {
    let mut text = String::from("version: 1\nname: bench\nsteps:\n");
    for step in 0..steps {
        writeln!(text, "  - id: s{step}\n    {action}").expect("a string takes all");
    }
    text
}

/// Layers of steps, each of which needs two of the layer before.
pub fn layered_playbook(steps: usize) -> String {
    let mut text = String::from("version: 1\nname: bench\nsteps:\n");
    for step in 0..steps {
        let needs = needs(step).map(|[one, two]| format!("s{one}, s{two}")).unwrap_or_default();
        writeln!(text, "  - id: s{step}\n    needs: [{needs}]\n    shell: {{run: 'true'}}").expect("a string takes all");
    }
    text
}

/// The graph of [`layered_playbook`] as recipes, and `all` to ask for it.
pub fn layered_justfile(steps: usize) -> String {
    let mut text = String::new();
    for step in 0..steps {
        let needs = needs(step).map(|[one, two]| format!(" s{one} s{two}")).unwrap_or_default();
        writeln!(text, "s{step}:{needs}\n    true").expect("a string takes all");
    }
    let last_layer = (steps.saturating_sub(WIDTH)..steps).map(|step| format!(" s{step}")).collect::<String>();
    writeln!(text, "all:{last_layer}").expect("a string takes all");
    text
}

fn needs(step: usize) -> Option<[usize; 2]> {
    let above = step.checked_sub(WIDTH)?;
    let first_of_layer = above - above % WIDTH;
    Some([above, first_of_layer + (above + 1) % WIDTH])
}
