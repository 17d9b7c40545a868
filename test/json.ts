/** Whether both values have the same JSON, apart from the order of fields. */
export function isSameJson(a: unknown, b: unknown): boolean {
  if (a === b) return true
  if (typeof a !== 'object' || typeof b !== 'object' || a === null || b === null) return false
  const [one, other] = [a as Readonly<Record<string, unknown>>, b as Readonly<Record<string, unknown>>]
  for (const name of Object.keys(one)) if (!isSameJson(one[name], other[name])) return false
  for (const name of Object.keys(other))
    if (other[name] !== undefined && one[name] === undefined) return false
  return Array.isArray(a) === Array.isArray(b)
}
