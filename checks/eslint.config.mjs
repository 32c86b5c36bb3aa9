// Scripts of the pages: plain files that browsers load as they are, no modules, no build.
import js from "@eslint/js";

const browser = [
  "AbortController", "BroadcastChannel", "CustomEvent", "Element", "Event", "EventSource", "FormData",
  "HTMLElement", "IntersectionObserver", "MutationObserver", "Node", "ResizeObserver", "TextDecoder",
  "TextEncoder", "URL", "URLSearchParams", "WebSocket", "cancelAnimationFrame", "clearInterval", "clearTimeout",
  "console", "document", "fetch", "getComputedStyle", "history", "localStorage", "location", "matchMedia",
  "navigator", "performance", "queueMicrotask", "requestAnimationFrame", "sessionStorage", "setInterval",
  "setTimeout", "structuredClone", "window",
];
// Loaded from ui/static/vendor before ours.
const vendored = ["FitAddon", "Terminal", "htmx", "uPlot"];

export default [
  { ignores: ["**/vendor/**"] },
  js.configs.recommended,
  {
    files: ["**/*.js", "**/*.mjs"],
    languageOptions: {
      ecmaVersion: 2022,
      globals: Object.fromEntries([...browser, ...vendored].map((name) => [name, "readonly"])),
    },
    rules: {
      eqeqeq: "error",
      "no-eval": "error",
      "no-implied-eval": "error",
      "no-new-func": "error",
      "no-var": "error",
      "prefer-const": "error",
      // hostile text becomes text, never markup
      "no-restricted-properties": [
        "error",
        ...["innerHTML", "outerHTML", "insertAdjacentHTML"].map((property) => ({ property })),
        { object: "document", property: "write" },
      ],
    },
  },
];
