document.querySelectorAll(".swipe").forEach(function (swipe) {
  var range = swipe.querySelector("input[type=range]");
  var stage = swipe.querySelector(".stage");
  function move() { stage.style.setProperty("--at", range.value + "%"); }
  range.addEventListener("input", move);
  move();
});
window.addEventListener("beforeprint", function () {
  document.querySelectorAll("details").forEach(function (part) { part.open = true; });
});
