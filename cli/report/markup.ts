/** HTML or SVG that is safe to put into a page as it is. */
export interface Markup {
  readonly markup: string;
}

type Content = Markup | string | number | readonly Content[];
type Attributes = Readonly<Record<string, string | number | undefined>>;

const isList = (content: Content): content is readonly Content[] => Array.isArray(content);
const escape = (text: string): string => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");
// Coordinates finer than a hundredth of a pixel only make the page longer.
const attributeText = (value: string | number): string => (typeof value === "number" ? String(Math.round(value * 100) / 100) : escape(value));

function contentText(content: Content): string {
  if (isList(content)) return content.map(contentText).join("");
  return typeof content === "object" ? content.markup : escape(String(content));
}

const withoutEnd = new Set(["meta", "br"]);

/** An element; text among its content is escaped, attributes that are undefined are left out. */
export function el(tag: string, attributes: Attributes, ...content: readonly Content[]): Markup {
  const listed = Object.entries(attributes).flatMap(([name, value]) => (value === undefined ? [] : [` ${name}="${attributeText(value)}"`]));
  return { markup: `<${tag}${listed.join("")}>${withoutEnd.has(tag) ? "" : `${contentText(content)}</${tag}>`}` };
}

/** Text that is its own markup: a style sheet, or data for programs. */
export const verbatim = (markup: string): Markup => ({ markup });

/** A picture in user units that is as wide as its place allows. */
export function svg(width: number, height: number, title: string, ...content: readonly Content[]): Markup {
  return el("svg", { xmlns: "http://www.w3.org/2000/svg", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title }, content);
}
