package systemd

// WatchdogEvery is the loop of Watchdog without the environment.
var WatchdogEvery = watchdog
