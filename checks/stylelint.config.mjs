// Style sheets of the pages.
export default {
  extends: ["stylelint-config-recommended"],
  ignoreFiles: ["**/vendor/**"],
  rules: {
    "color-no-invalid-hex": true,
    // a component's variants stand beside it, not in order of weight
    "no-descending-specificity": null,
  },
};
