//! The commands that made an image's layers, as its configuration's `history` has them (image-spec, config.md).

use serde::Deserialize;

use peelfs::image::Plan;

/// The command that made each layer, the lowest first; `None` if the configuration does not say.
pub(super) fn commands(plan: &Plan) -> Vec<Option<String>> {
    let history =
        serde_json::from_str::<Configuration>(plan.configuration.raw.get()).ok().and_then(|config| config.history);
    let made: Vec<_> =
        history.unwrap_or_default().into_iter().filter(|step| !step.empty_layer.unwrap_or_default()).collect();
    // Without one step for each layer, it is unknown which step made which layer.
    if made.len() < plan.layers.len() {
        return vec![None; plan.layers.len()];
    }
    made.into_iter().take(plan.layers.len()).map(|step| step.created_by.map(|command| short(&command))).collect()
}

#[derive(Deserialize)]
struct Configuration {
    history: Option<Vec<Step>>,
}

#[derive(Deserialize)]
struct Step {
    created_by: Option<String>,
    empty_layer: Option<bool>,
}

/// Without what builders put around a command.
fn short(command: &str) -> String {
    let command = command.trim();
    let run = command.strip_prefix("RUN ").unwrap_or(command);
    let text = match run.strip_prefix("/bin/sh -c ") {
        Some(instruction) => match instruction.strip_prefix("#(nop)") {
            Some(instruction) => instruction.trim().to_owned(),
            None => format!("RUN {}", instruction.trim()),
        },
        None => command.to_owned(),
    };
    text.strip_suffix("# buildkit").map_or(text.clone(), |text| text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn commands_are_shown_without_what_builders_add() {
        for (written, shown) in [
            ("/bin/sh -c #(nop) ADD file:12 in / ", "ADD file:12 in /"),
            ("/bin/sh -c apt-get update", "RUN apt-get update"),
            ("RUN /bin/sh -c make # buildkit", "RUN make"),
            ("COPY . /app # buildkit", "COPY . /app"),
            ("bazel build ...", "bazel build ..."),
        ] {
            assert_eq!(short(written), shown);
        }
    }
}
