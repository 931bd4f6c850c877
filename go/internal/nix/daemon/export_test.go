package daemon

// TextInfo is textInfo.
var TextInfo = textInfo
