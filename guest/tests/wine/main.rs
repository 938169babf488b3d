//! The real `lamina-guest.exe` under wine. What a test sets, it sets from outside: by `reg`, files, programs, services.
//!
//! Run by `guest/test-wine.sh`, which installs wine, builds the program and sets `LAMINA_EXE` and `LAMINA_WINE`. Each test has a Windows of
//! its own.

mod installed;
mod places;
mod prefix;
mod told;
mod window;
