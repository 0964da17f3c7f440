//! Names of the requests, for metrics and logs.

use super::NodeRequest;

impl NodeRequest {
    /// Every name that [`NodeRequest::name`] gives.
    pub const NAMES: &[&str] = &[
        "sign_open",
        "sign_round2",
        "frost_sign",
        "batch_open",
        "batch_round",
        "batch_frost",
        "sign_close",
        "password_open",
        "password_close",
        "source",
        "generate_open",
        "generate_round1",
        "generate_round2",
        "generate_round3",
        "generate_round4",
        "generate_round5",
        "generate_round",
        "generate_prepare",
        "commit",
        "discard",
        "order",
        "manage",
        "key_info",
        "undecided",
        "decision",
        "epoch_of",
        "confirm_epoch",
    ];

    /// What is asked for, from a closed list: the label `round` of metrics. The rounds of a key generation cost so differently that each
    /// has a name; one that there is not is `generate_round`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::SignOpen(_) => "sign_open",
            Self::SignRound2 { .. } => "sign_round2",
            Self::FrostSign { .. } => "frost_sign",
            Self::BatchOpen { .. } => "batch_open",
            Self::BatchRound { .. } => "batch_round",
            Self::BatchFrost { .. } => "batch_frost",
            Self::SignClose { .. } => "sign_close",
            Self::PasswordOpen(_) => "password_open",
            Self::PasswordClose { .. } => "password_close",
            Self::Source { .. } => "source",
            Self::GenerateOpen { .. } => "generate_open",
            Self::GenerateRound { round: 1, .. } => "generate_round1",
            Self::GenerateRound { round: 2, .. } => "generate_round2",
            Self::GenerateRound { round: 3, .. } => "generate_round3",
            Self::GenerateRound { round: 4, .. } => "generate_round4",
            Self::GenerateRound { round: 5, .. } => "generate_round5",
            Self::GenerateRound { .. } => "generate_round",
            Self::GeneratePrepare { .. } => "generate_prepare",
            Self::Commit { .. } => "commit",
            Self::Discard { .. } => "discard",
            Self::Order { .. } => "order",
            Self::Manage { .. } => "manage",
            Self::KeyInfo { .. } => "key_info",
            Self::Undecided => "undecided",
            Self::Decision { .. } => "decision",
            Self::EpochOf { .. } => "epoch_of",
            Self::ConfirmEpoch { .. } => "confirm_epoch",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::NodeRequest;

    #[test]
    fn the_list_has_every_name_once() {
        let mut names: Vec<&str> = include_str!("name.rs")
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Self::")?.split("=> \"").nth(1)?.split('"').next())
            .collect();
        let mut listed = NodeRequest::NAMES.to_vec();
        names.sort_unstable();
        listed.sort_unstable();
        assert_eq!(names, listed);
        listed.dedup();
        assert_eq!(names.len(), listed.len());
    }
}
