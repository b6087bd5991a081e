// Types of what the dashboard uses of preact-htm.js; ours, for the type check alone.
export type Node = unknown;
export type Change<T> = (next: T | ((old: T) => T)) => void;
export function html(strings: TemplateStringsArray, ...values: unknown[]): Node;
export function render(node: Node, parent: Element): void;
export function useState<T>(first: T | (() => T)): [T, Change<T>];
export function useEffect(run: () => void | (() => void), inputs?: readonly unknown[]): void;
export function useMemo<T>(make: () => T, inputs?: readonly unknown[]): T;
export function useRef<T>(first: T): { current: T };
