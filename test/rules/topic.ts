/**
 * Rules of topics, written word by word from their description: which names a pattern matches, and which headers a
 * binding matches.
 */

/** Whether the pattern matches the name: `*` matches one level, `#` any number of levels, also none. */
export function matchesTopic(pattern: string, name: string): boolean {
  return matchesLevels(pattern.split('.'), name.split('.'))
}

function matchesLevels(pattern: readonly string[], name: readonly string[]): boolean {
  const [first, ...rest] = pattern
  if (first === undefined) return name.length === 0
  if (first === '#')
    return matchesLevels(rest, name) || (name.length > 0 && matchesLevels(pattern, name.slice(1)))
  return name.length > 0 && (first === '*' || first === name[0]) && matchesLevels(rest, name.slice(1))
}

/** Headers that a binding requires: all of them, or any of them. */
export interface RequiredHeaders {
  readonly kind: 'all' | 'any'
  readonly headers: Readonly<Record<string, string>>
}

export function hasHeaders(
  required: RequiredHeaders | undefined,
  headers: Readonly<Record<string, string>>,
): boolean {
  if (required === undefined) return true
  const found = Object.entries(required.headers).map(([name, value]) => headers[name] === value)
  return required.kind === 'all' ? found.every(Boolean) : found.some(Boolean)
}
