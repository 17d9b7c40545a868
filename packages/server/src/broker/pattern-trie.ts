/**
 * Finds the patterns that match a topic: a trie with one level of a pattern for each edge. It is pure, and knows nothing
 * of queues.
 *
 * A match follows all nodes that the levels of the name so far can lead to. A node is visited once for each level, so a
 * match takes time in proportion to the levels of the name and the branches with wildcards, and not to the patterns.
 * Thousands of patterns that are made of wildcards have as many branches, so the visits of one match are limited.
 */
import { SluiceError } from '@sluice/protocol'

/** Maximum number of nodes that one match visits, each once for each level. They take about 10 ms. */
export const VISITS_MAX = 16_384

const ANY_LEVEL = '*'
const ANY_LEVELS = '#'

class Node<Value> {
  /** Whether the edge to this node is `#`, so that any further level leads to this node again. */
  readonly isAnyLevels: boolean
  readonly values = new Set<Value>()
  readonly children = new Map<string, Node<Value>>()
  /** The last step of a match in which this node was visited. */
  step = 0

  constructor(isAnyLevels: boolean) {
    this.isAnyLevels = isAnyLevels
  }
}

export class PatternTrie<Value> {
  readonly #root = new Node<Value>(false)
  /** Number of the current step, over all matches. */
  #step = 0

  add(pattern: string, value: Value): void {
    let node = this.#root
    for (const level of pattern.split('.')) {
      let child = node.children.get(level)
      if (child === undefined) node.children.set(level, (child = new Node(level === ANY_LEVELS)))
      node = child
    }
    node.values.add(value)
  }

  remove(pattern: string, value: Value): void {
    const levels = pattern.split('.')
    const path = [this.#root]
    for (const level of levels) {
      const child = path.at(-1)!.children.get(level)
      if (child === undefined) return
      path.push(child)
    }
    path.at(-1)!.values.delete(value)
    for (let depth = levels.length; depth > 0; depth--) {
      const { values, children } = path[depth]!
      if (values.size > 0 || children.size > 0) return
      path[depth - 1]!.children.delete(levels[depth - 1]!)
    }
  }

  /** The values of one pattern, which is not matched but looked up. */
  at(pattern: string): ReadonlySet<Value> {
    let node: Node<Value> | undefined = this.#root
    for (const level of pattern.split('.')) node = node?.children.get(level)
    return node?.values ?? NO_VALUES
  }

  /** The values of all patterns that match the name. @throws SluiceError TOO_MANY_TARGETS */
  match(name: string): Value[] {
    let active: Node<Value>[] = []
    let visits = 0
    this.#step++
    this.#visit(this.#root, active)
    for (const level of name.split('.')) {
      const next: Node<Value>[] = []
      this.#step++
      for (const node of active) {
        if (visits + next.length > VISITS_MAX) throw tooManyBranches(name)
        if (node.isAnyLevels) this.#visit(node, next)
        const exact = node.children.get(level)
        if (exact !== undefined) this.#visit(exact, next)
        const any = node.children.get(ANY_LEVEL)
        if (any !== undefined) this.#visit(any, next)
      }
      visits += next.length
      active = next
    }
    return active.flatMap(({ values }) => [...values])
  }

  // `#` also matches no level, so a node leads to its child `#` at once.
  #visit(node: Node<Value>, active: Node<Value>[]): void {
    if (node.step === this.#step) return
    node.step = this.#step
    active.push(node)
    const anyLevels = node.children.get(ANY_LEVELS)
    if (anyLevels !== undefined) this.#visit(anyLevels, active)
  }
}

const NO_VALUES: ReadonlySet<never> = new Set<never>()

function tooManyBranches(name: string): SluiceError {
  return new SluiceError(
    'TOO_MANY_TARGETS',
    `The bindings with wildcards lead the topic ${name} along more than ${VISITS_MAX} branches. Remove bindings that have several wildcards.`,
  )
}
