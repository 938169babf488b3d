//! Sizes as Kubernetes writes them: `60Gi`, `1.5G`, `64e9`. The CRD has refused whatever is no whole positive number.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Bytes; `None` for what is no whole number of them, or too large.
#[must_use]
pub fn bytes(quantity: &Quantity) -> Option<i64> {
    let text = quantity.0.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '+').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    // `1000m` is one: the API server's rule lets whole numbers through however they are written.
    let (suffix, thousandths) = match suffix {
        "m" => ("", 1),
        "u" => ("", 2),
        "n" => ("", 3),
        suffix => (suffix, 0),
    };
    let (factor, exponent): (i128, u32) = match suffix {
        "" => (1, 0),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        _ => (1, suffix.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    let (whole, part) = number.trim_start_matches('+').split_once('.').unwrap_or((number.trim_start_matches('+'), ""));
    let digits: i128 = format!("{whole}{part}").parse().ok()?;
    let scale = 10_i128.checked_pow(u32::try_from(part.len()).ok()?.checked_add(3 * thousandths)?)?;
    let value = digits.checked_mul(factor)?.checked_mul(10_i128.checked_pow(exponent)?)?;
    (value % scale == 0).then(|| i64::try_from(value / scale).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ways_of_writing_a_size_are_read() {
        let of = |s: &str| bytes(&Quantity(s.to_owned()));
        assert_eq!(of("60Gi"), Some(60 << 30));
        assert_eq!(of("1.5Ki"), Some(1536));
        assert_eq!(of("2G"), Some(2_000_000_000));
        assert_eq!(of("64e9"), Some(64_000_000_000));
        assert_eq!(of("+10"), Some(10));
        assert_eq!((of("2000m"), of("1500m")), (Some(2), None));
        assert_eq!((of("1.5"), of("60x"), of(""), of("99999Ei")), (None, None, None, None));
    }
}
