// Scripts of the pages: plain files that browsers load as they are, no modules, no build.
import js from "@eslint/js";

const browser = [
  "AbortController", "AbortSignal", "BroadcastChannel", "CSS", "CustomEvent", "DOMParser", "Element", "Event",
  "EventSource", "FormData", "HTMLDialogElement", "HTMLElement", "HTMLFormElement", "HTMLInputElement",
  "HTMLTemplateElement", "IntersectionObserver", "KeyboardEvent", "MessageEvent", "MutationObserver", "Node",
  "Notification", "ResizeObserver", "TextDecoder", "TextEncoder", "URL", "URLSearchParams", "WebSocket",
  "addEventListener", "cancelAnimationFrame", "clearInterval", "clearTimeout", "console", "crypto", "document",
  "fetch", "getComputedStyle", "history", "localStorage", "location", "matchMedia", "navigator", "performance",
  "queueMicrotask", "removeEventListener", "requestAnimationFrame", "sessionStorage", "setInterval",
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
